"""Percentile bootstrap intervals over examples.

Source: Efron and Tibshirani 1993, chapter 13.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import bootstrap

_CHUNK = 4_000_000  # resampled values in memory at a time

Interval = tuple[float, float]


def mean_interval(values: np.ndarray, *, confidence: float, resamples: int, seed: int) -> Interval:
    """Interval of the mean of `values`, (n,) float; for paired models, of the per-example differences."""
    n = len(values)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    means = [
        values[generator.integers(n, size=(min(rows, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def ratio_interval(score: np.ndarray, weight: np.ndarray, *, confidence: float, resamples: int, seed: int) -> Interval:
    """Interval of sum(score) / sum(weight), both (n,) float, resampled together."""
    if np.ptp(score / weight) == 0:  # all resamples have the same value
        value = float(score.sum() / weight.sum())
        return value, value

    def ratio(score: np.ndarray, weight: np.ndarray, axis: int = -1) -> np.ndarray:
        return score.sum(axis) / weight.sum(axis)

    return _scipy_interval((score, weight), ratio, confidence, resamples, seed, paired=True)


def macro_interval(values: np.ndarray, groups: np.ndarray, *, confidence: float, resamples: int, seed: int) -> Interval:
    """Interval of the mean over groups of each group's mean; a group that a resample misses does not count.

    Args:
        values: (n,) float. groups: (n,) int, such as classes.
    """
    n, generator = len(values), np.random.default_rng(seed)
    member = np.eye(groups.max() + 1)[groups]  # (n, G)
    counts = generator.multinomial(n, np.full(n, 1 / n), size=resamples)  # (B, n) how often each example is drawn
    drawn = counts @ member
    means = np.divide(counts @ (member * values[:, None]), drawn, out=np.zeros_like(drawn), where=drawn > 0)
    low, high = np.quantile(means.sum(1) / (drawn > 0).sum(1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_difference_interval(
    new: np.ndarray, old: np.ndarray, *, confidence: float, resamples: int, seed: int
) -> Interval:
    """Interval of mean(new) − mean(old) for two independent samples, (n,) and (m,) float."""
    if not np.ptp(new) and not np.ptp(old):  # all resamples have the same value
        constant = float(new.mean() - old.mean())
        return constant, constant

    def difference(new: np.ndarray, old: np.ndarray, axis: int = -1) -> np.ndarray:
        return new.mean(axis) - old.mean(axis)

    return _scipy_interval((new, old), difference, confidence, resamples, seed, batch=100)


def _scipy_interval(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., np.ndarray],
    confidence: float,
    resamples: int,
    seed: int,
    **options: Any,
) -> Interval:
    interval = bootstrap(
        samples,
        statistic,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
        **options,
    ).confidence_interval
    return float(interval.low), float(interval.high)
