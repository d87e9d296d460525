"""What each stage of curation returned: models trained alike on what was left, compared on the same pictures."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.data_ablation.config import DataAblationConfig
from vlmflow.artifacts.ledger import RULES, STAGES
from vlmflow.errors import DataError
from vlmflow.evaluation.comparison import compare
from vlmflow.evaluation.scores import read_examples


def write_gains(
    scores: dict[str, Path], ledger: Path, returns: Path, page: Path, config: DataAblationConfig
) -> dict[str, Any]:
    """Write what each stage bought and cost to `returns` (JSON) and as a table and a plot to `page` (HTML).

    Args:
        scores: the evaluation after each stage, in their order, `raw` first; all on the same examples.
        ledger: the curation's.

    Raises:
        DataError: a capability that was not measured.
    """
    found = {
        "capabilities": list(config.capabilities),
        "confidence": config.confidence,
        "stages": [_stage_gains(stage, scores, ledger, config) for stage in scores],
    }
    returns.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    from components.data_ablation.page import render

    page.write_text(render(found), encoding="utf-8")
    return found


def _stage_gains(stage: str, scores: dict[str, Path], ledger: Path, config: DataAblationConfig) -> dict[str, Any]:
    """Rows that the stage took, its seconds, and each capability with its gain over raw and the stage before."""
    order = list(scores)
    before = order[max(0, order.index(stage) - 1)]
    values = json.loads((scores[stage] / "scores.json").read_text(encoding="utf-8"))["capabilities"]
    if missing := [name for name in config.capabilities if name not in values]:
        raise DataError(f"roi.capabilities: {missing[0]!r} was not measured; measured: {', '.join(values)}")
    options: dict[str, Any] = {
        "protected": config.capabilities, "confidence": config.confidence, "seed": config.seed
    }  # fmt: skip
    here = read_examples(scores[stage])
    gains = {
        name: {c.capability: asdict(c) for c in compare(here, read_examples(scores[other]), **options)}
        for name, other in (("over_raw", "raw"), ("over_stage_before", before))
    }
    summary = json.loads((ledger / "summary.json").read_text(encoding="utf-8"))
    cost = json.loads((ledger / "cost.json").read_text(encoding="utf-8"))
    return {
        "stage": stage,
        "dropped": sum(summary["dropped"][rule] for rule in _rules_of_stage(stage)),
        "seconds": cost["seconds"].get(stage),
        "capabilities": {name: values[name] for name in config.capabilities},
        "gains": gains,
    }


def _rules_of_stage(stage: str) -> tuple[str, ...]:
    """The rules of `stage`: those after the stage before it, up to its last."""
    stages = list(STAGES)
    place = stages.index(stage)
    first = RULES.index(STAGES[stages[place - 1]]) + 1 if place else 0
    return RULES[first : RULES.index(STAGES[stage]) + 1]
