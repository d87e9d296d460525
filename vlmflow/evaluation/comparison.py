"""Two models on the same examples, paired: which capability is worse, and by how much."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from vlmflow.errors import DataError, GateError

Examples = Mapping[str, Mapping[str, float]]  # capability → example → score; a higher score is better

_CHUNK = 4_000_000  # resampled examples in memory at a time


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
        """Whether this capability alone keeps the challenger back."""
        return self.verdict in ("worse", "lost")

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.capability}: the challenger was not scored on it, the champion has {self.champion:.3f}"
        return (
            f"{self.capability}: {self.challenger:.3f} against {self.champion:.3f}, difference {self.difference:+.3f} "
            f"[{self.low:+.3f}, {self.high:+.3f}] on {self.n} examples: {self.verdict}"
        )


def read_examples(scores: str | Path) -> dict[str, dict[str, float]]:
    """Read the per-example scores of a scores artifact.

    Raises:
        DataError: the file is missing, or one example is scored twice.
    """
    path = Path(scores) / "examples.parquet"
    if not path.is_file():
        raise DataError(f"{path}: no per-example scores; evaluate the model again")
    found: dict[str, dict[str, float]] = {}
    for row in pq.read_table(path, columns=["capability", "example", "score"]).to_pylist():
        scored = found.setdefault(row["capability"], {})
        if row["example"] in scored:
            raise DataError(f"{path}: {row['capability']} scores the example {row['example']} twice")
        scored[row["example"]] = float(row["score"])
    return found


def same_examples(one: Examples, other: Examples) -> bool:
    """Whether the capabilities that both have were scored on the same examples."""
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

    A capability is worse when the whole interval of the difference lies below −tolerance, better when it lies above 0.

    Args:
        protected: the capabilities to compare; empty means every one that the champion has.
        tolerance: a loss of mean score that is accepted.
        min_examples: below it the verdict is `unsure`: the bootstrap of a handful is far too certain (of one, wholly).

    Raises:
        GateError: a protected capability that neither model has, or examples that do not pair.
    """
    for name in protected:
        if name not in challenger and name not in champion:
            known = ", ".join(sorted({*challenger, *champion})) or "none"
            raise GateError(f"gate.protected: {name!r} was not evaluated; evaluated: {known}")
    names = [name for name in sorted(champion) if not protected or name in protected]
    found: list[Comparison] = []
    for name in names:
        before = champion[name]
        keys = sorted(before)
        old = np.array([before[key] for key in keys], dtype=np.float64)
        if name not in challenger:
            found.append(Comparison(capability=name, n=len(keys), champion=float(old.mean()), verdict="lost"))
            continue
        after = challenger[name]
        if after.keys() != before.keys():
            alone = len(after.keys() ^ before.keys())
            raise GateError(f"{name}: {alone} examples are not in both; evaluate both models on the same data")
        new = np.array([after[key] for key in keys], dtype=np.float64)
        low, high = _interval(new - old, confidence, resamples, seed)
        found.append(
            Comparison(
                capability=name,
                n=len(keys),
                challenger=float(new.mean()),
                champion=float(old.mean()),
                difference=float((new - old).mean()),
                low=low,
                high=high,
                verdict=_verdict(low, high, tolerance) if len(keys) >= min_examples else "unsure",
            )
        )
    return found


def _verdict(low: float, high: float, tolerance: float) -> Literal["better", "same", "worse"]:
    if high < -tolerance:
        return "worse"
    return "better" if low > 0 else "same"


def _interval(differences: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `differences`: (n,) float."""
    n = len(differences)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    means = [
        differences[generator.integers(n, size=(min(rows, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
