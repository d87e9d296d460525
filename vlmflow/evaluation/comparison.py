"""A paired comparison of two models on the same examples: which capability got worse, and by how much."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlmflow.errors import GateError
from vlmflow.evaluation.intervals import mean_interval
from vlmflow.evaluation.scores import Examples


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One capability: mean score of each model, and the difference challenger − champion with its interval."""

    capability: str
    n: int
    challenger: float | None = None
    champion: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Literal["better", "same", "worse", "lost", "unsure"]

    @property
    def is_regression(self) -> bool:
        """Whether the challenger is worse on this capability or was not scored on it."""
        return self.verdict in ("worse", "lost")

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.capability}: not measured for the challenger; the champion scored {self.champion:.3f}"
        return (
            f"{self.capability}: {self.challenger:.3f} against {self.champion:.3f}, difference {self.difference:+.3f} "
            f"[{self.low:+.3f}, {self.high:+.3f}] on {self.n} examples: {self.verdict}"
        )


def same_examples(one: Examples, other: Examples) -> bool:
    """Whether the capabilities that both models have were scored on the same examples."""
    return all(one[name].keys() == other[name].keys() for name in one.keys() & other.keys())


def compare(
    challenger: Examples,
    champion: Examples,
    *,
    protected: Collection[str] = (),
    confidence: float = 0.95,
    resamples: int = 2000,
    tolerance: float = 0.0,
    min_examples: int = 10,
    seed: int = 0,
) -> list[Comparison]:
    """Compare two models capability by capability, by a paired bootstrap of the per-example difference.

    A capability is worse if the whole interval of the difference lies below −tolerance, and better if it lies above 0.

    Args:
        protected: the capabilities to compare; empty means all capabilities of the champion.
        tolerance: accepted loss of mean score.
        min_examples: with fewer examples the verdict is `unsure`, because the bootstrap interval of a few examples is
            far too narrow (of a single example its width is 0).

    Raises:
        GateError: neither model has a protected capability, or the models were scored on different examples.
    """
    for name in protected:
        if name not in challenger and name not in champion:
            evaluated = ", ".join(sorted({*challenger, *champion})) or "none"
            raise GateError(f"gate.protected: {name!r} was not evaluated; evaluated: {evaluated}")
    comparisons: list[Comparison] = []
    for name in sorted(champion):
        if protected and name not in protected:
            continue
        keys = sorted(champion[name])
        old = np.array([champion[name][key] for key in keys], dtype=np.float64)
        if name not in challenger:
            comparisons.append(Comparison(capability=name, n=len(keys), champion=float(old.mean()), verdict="lost"))
            continue
        if unpaired := challenger[name].keys() ^ champion[name].keys():
            raise GateError(
                f"{name}: {len(unpaired)} examples were scored for one model only; evaluate both on the same data"
            )
        new = np.array([challenger[name][key] for key in keys], dtype=np.float64)
        low, high = mean_interval(new - old, confidence=confidence, resamples=resamples, seed=seed)
        comparisons.append(
            Comparison(
                capability=name,
                n=len(keys),
                challenger=float(new.mean()),
                champion=float(old.mean()),
                difference=float((new - old).mean()),
                low=low,
                high=high,
                verdict=verdict(low, high, tolerance) if len(keys) >= min_examples else "unsure",
            )
        )
    return comparisons


def verdict(low: float, high: float, tolerance: float) -> Literal["better", "same", "worse"]:
    """Judge a difference by its interval."""
    if high < -tolerance:
        return "worse"
    return "better" if low > 0 else "same"
