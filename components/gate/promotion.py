"""The gate: choose between the aligned model and the one before it, and decide whether to promote it to champion."""

import json
import shutil
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.evaluation.comparison import Comparison, compare, same_examples
from vlmflow.evaluation.config import GateConfig
from vlmflow.evaluation.controls import unproven
from vlmflow.evaluation.scores import Examples, read_examples, read_scores
from vlmflow.tracking.registry import Version, champion_version, download

logger = getLogger(__name__)


class Evaluator(Protocol):
    """A function that evaluates a model on this pipeline's test data."""

    def __call__(self, *, model: Path, out: Path) -> Any:
        """Write the scores artifact of `model` to `out`."""


@dataclass(frozen=True)
class Candidate:
    """A model folder and its scores artifact."""

    model: Path
    scores: Path

    @property
    def examples(self) -> Examples:
        """Capability → example → score."""
        return read_examples(self.scores)


def gate(
    candidate: Candidate,
    fallback: Candidate,
    *,
    registry: str,
    evaluate: Evaluator,
    chosen: Path,
    scores: Path,
    verdict: Path,
    section: GateConfig,
) -> dict[str, Any]:
    """Decide which model is registered and whether it is promoted.

    1. Choose the aligned model, unless a protected capability got worse: then the model before alignment.
    2. Promote the chosen model if it beats its controls, with blank and with shuffled images, and no protected
       capability is worse than that of the registry's champion.

    Args:
        candidate: the aligned model.
        fallback: the model before alignment.
        registry: name of the registered model whose champion the chosen model is compared with.
        evaluate: called only if the champion was evaluated on other examples.
        chosen, scores, verdict: folders for the chosen model, its scores and `verdict.json`.

    Returns:
        The decision, as written to `verdict.json`.

    Raises:
        GateError: a protected capability was not evaluated, or the models were scored on different examples.
    """
    alignment = _compare(candidate, fallback.examples, section)
    aligned = not any(comparison.is_regression for comparison in alignment)
    winner = candidate if aligned else fallback
    reasons = [f"alignment refused: {comparison}" for comparison in alignment if comparison.is_regression]

    current = champion_version(registry)
    against: list[Comparison] = []
    tied: dict[str, list[str]] = {}
    promoted = True
    if current and current.model_hash == Checkpoint(winner.model).hash:
        reasons.append(f"{current.uri}, the champion, is this model")
    else:
        capabilities = read_scores(winner.scores)["capabilities"]
        tied = unproven(capabilities, section.protected, section.min_examples) if section.beat_controls else {}
        reasons += [_unproven_reason(name, kinds, capabilities) for name, kinds in tied.items()]
        promoted = not tied
    if current is None and promoted:
        reasons.append(f"{registry!r} has no champion yet: the first version is promoted")
    elif current and current.model_hash != Checkpoint(winner.model).hash:
        against = _compare(winner, _champion_examples(current, winner, evaluate), section)
        lost = [comparison for comparison in against if comparison.is_regression]
        promoted = promoted and not lost
        reasons += [f"promotion refused by {current.uri}: {comparison}" for comparison in lost]
        if not lost:
            reasons.append(f"no protected capability is worse than that of {current.uri}")

    decision = {
        "chosen": "aligned" if aligned else "fallback",
        "alignment": [asdict(comparison) for comparison in alignment],
        "promoted": promoted,
        "unproven": tied,
        "against": current.version if current else None,
        "capabilities": [asdict(comparison) for comparison in against],
        "reasons": reasons,
    }
    for reason in reasons:
        logger.info("%s", reason)
    shutil.copytree(winner.model, chosen, dirs_exist_ok=True)
    shutil.copytree(winner.scores, scores, dirs_exist_ok=True)
    verdict.mkdir(parents=True, exist_ok=True)
    (verdict / "verdict.json").write_text(json.dumps(decision, indent=2) + "\n", encoding="utf-8")
    return decision


def _unproven_reason(name: str, kinds: list[str], capabilities: dict[str, Any]) -> str:
    """State which controls a capability does not beat, and the remedy."""
    if not name:
        return "promotion refused: no accuracy with enough examples to compare with its controls; evaluate on more"
    value = capabilities[name]
    controls = " and ".join(
        f"{kind} images {control['value']:.3f} [{control['low']:.3f}, {control['high']:.3f}]"
        if (control := value.get("controls", {}).get(kind))
        else f"{kind} images, not measured"
        for kind in kinds
    )
    return (
        f"promotion refused: {name} {value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}] is not better than "
        f"with {controls}; train longer, or name the capabilities that count in gate.protected"
    )


def _compare(challenger: Candidate, champion: Examples, section: GateConfig) -> list[Comparison]:
    return compare(
        challenger.examples,
        champion,
        protected=section.protected,
        confidence=section.confidence,
        resamples=section.resamples,
        tolerance=section.tolerance,
        min_examples=section.min_examples,
        seed=section.seed,
    )


def _champion_examples(current: Version, winner: Candidate, evaluate: Evaluator) -> Examples:
    """The champion's score on each of the winner's examples: as registered, or evaluated now if the data differ."""
    folder = download(current.uri)
    data = read_scores(winner.scores).get("data")
    if read_scores(folder / "scores").get("data") == data:
        registered = read_examples(folder / "scores")
        if same_examples(registered, read_examples(winner.scores)):
            return registered
    logger.info("%s was evaluated on other examples: evaluating it again", current.uri)
    with TemporaryDirectory() as folder_of_scores:
        scores = Path(folder_of_scores) / "scores"
        evaluate(model=folder / "model", out=scores)
        return read_examples(scores)
