"""Which model goes on, and whether it may take the champion's place."""

import json
import shutil
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.evaluation.comparison import Comparison, Examples, compare, examples, same_examples
from vlmflow.evaluation.config import GateConfig
from vlmflow.tracking.registry import Version, champion, download, read_json

logger = getLogger(__name__)


class Evaluate(Protocol):
    """Scores the model in a folder on this pipeline's test data."""

    def __call__(self, *, model: Path, out: Path) -> Any:
        """Write the scores artifact of `model` to `out`."""


@dataclass(frozen=True)
class Contender:
    """A model and what it scored."""

    model: Path
    scores: Path

    @property
    def examples(self) -> Examples:
        """Its score on each example."""
        return examples(self.scores)


def gate(
    candidate: Contender,
    fallback: Contender,
    *,
    registry: str,
    evaluate: Evaluate,
    chosen: Path,
    scores: Path,
    verdict: Path,
    section: GateConfig,
) -> dict[str, Any]:
    """1. Take the aligned model unless it lost a protected capability. 2. Compare it with the registry's champion.

    Args:
        candidate: the aligned model.
        fallback: the model before alignment.
        registry: name of the registered model whose champion is to be beaten.
        evaluate: called only where the champion was evaluated on other examples than these.
        chosen, scores, verdict: folders for the chosen model, its scores and `verdict.json`.

    Returns:
        The verdict, as it is written.

    Raises:
        GateError: a protected capability was never evaluated, or the two models' examples differ.
    """
    kept = _compare(candidate, fallback.examples, section)
    aligned = not any(comparison.refused for comparison in kept)
    winner = candidate if aligned else fallback
    reasons = [f"alignment refused: {comparison}" for comparison in kept if comparison.refused]

    rival = champion(registry)
    against: list[Comparison] = []
    promoted = True
    if rival is None:
        reasons.append(f"no champion of {registry!r} yet: the first version takes the place")
    elif rival.model_hash == Checkpoint(winner.model).hash:
        reasons.append(f"{rival.uri} is this very model, and the champion already")
    else:
        against = _compare(winner, _champion_examples(rival, winner, evaluate), section)
        lost = [comparison for comparison in against if comparison.refused]
        promoted = not lost
        reasons += [f"promotion refused by {rival.uri}: {comparison}" for comparison in lost]
        if promoted:
            reasons.append(f"no protected capability is worse than that of {rival.uri}")

    decision = {
        "chosen": "aligned" if aligned else "fallback",
        "alignment": [asdict(comparison) for comparison in kept],
        "promoted": promoted,
        "against": rival.version if rival else None,
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


def _compare(challenger: Contender, champion: Examples, section: GateConfig) -> list[Comparison]:
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


def _champion_examples(rival: Version, winner: Contender, evaluate: Evaluate) -> Examples:
    """The champion's score on each of the winner's examples: as registered, or evaluated now."""
    folder = download(rival.uri)
    data = read_json(winner.scores, "scores.json").get("data")
    if read_json(folder / "scores", "scores.json").get("data") == data:
        registered = examples(folder / "scores")
        if same_examples(registered, examples(winner.scores)):
            return registered
    logger.info("%s was evaluated on other examples: evaluating it on these", rival.uri)
    with TemporaryDirectory() as place:
        scores = Path(place) / "scores"
        evaluate(model=folder / "model", out=scores)
        return examples(scores)
