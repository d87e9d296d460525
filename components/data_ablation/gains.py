"""Gains of the stages of curation: one model trained on the pairs after each stage, compared on the same images."""

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
    scores: dict[str, Path], ledger: Path, gains: Path, page: Path, config: DataAblationConfig
) -> dict[str, Any]:
    """Write gains and costs of each stage to `gains` (JSON), and a page with a table and a plot to `page` (HTML).

    Args:
        scores: folder of the evaluation after each stage, in their order, `raw` first; all on the same examples.
        ledger: folder of the curation's ledger.

    Raises:
        DataError: a capability of the recipe was not evaluated.
    """
    report = {
        "capabilities": list(config.capabilities),
        "confidence": config.confidence,
        "stages": [_stage_gains(stage, scores, ledger, config) for stage in scores],
    }
    gains.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    from components.data_ablation.page import render

    page.write_text(render(report), encoding="utf-8")
    return report


def _stage_gains(stage: str, scores: dict[str, Path], ledger: Path, config: DataAblationConfig) -> dict[str, Any]:
    """Return the rows that the stage dropped, its duration, and the gains over raw and over the previous stage."""
    order = list(scores)
    previous = order[max(0, order.index(stage) - 1)]
    values = json.loads((scores[stage] / "scores.json").read_text(encoding="utf-8"))["capabilities"]
    if missing := [name for name in config.capabilities if name not in values]:
        raise DataError(
            f"data_ablation.capabilities: {missing[0]!r} was not evaluated; choose from {', '.join(values)}"
        )
    options: dict[str, Any] = {
        "protected": config.capabilities, "confidence": config.confidence, "seed": config.seed
    }  # fmt: skip
    examples = read_examples(scores[stage])
    gains = {
        name: {c.capability: asdict(c) for c in compare(examples, read_examples(scores[other]), **options)}
        for name, other in (("over_raw", "raw"), ("over_previous_stage", previous))
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
    """Return the rules of `stage`: those after the last rule of the previous stage."""
    stages = list(STAGES)
    index = stages.index(stage)
    first = RULES.index(STAGES[stages[index - 1]]) + 1 if index else 0
    return RULES[first : RULES.index(STAGES[stage]) + 1]
