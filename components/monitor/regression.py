"""A registered model on other data than it was registered on: which capability fell, and by how much."""

import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import bootstrap

from vlmflow.errors import GateError
from vlmflow.evaluation.comparison import Comparison, compare, read_examples
from vlmflow.evaluation.config import GateConfig
from vlmflow.tracking.registry import read_json

logger = logging.getLogger(__name__)

ALIKE = 0.05  # recall among 500 and among 490 captions are compared; among 500 and among 100 they are not
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Scores:
    """What a model scored: the name of each capability's metric, and a score for each example, more is better."""

    metrics: dict[str, str]
    examples: dict[str, dict[str, float]]

    @classmethod
    def read(cls, scores: Path) -> "Scores":
        """Read a scores artifact.

        Raises:
            DataError, ModelError: a file of it is missing or damaged.
        """
        values = read_json(scores, "scores.json")["capabilities"]
        return cls({name: value["metric"] for name, value in values.items()}, read_examples(scores))


def compare_with_registration(
    *, now: Path, registered: Path, version: Path, finding: Path, page: Path, section: GateConfig
) -> dict[str, Any]:
    """Compare the scores of today with those of the registration; write the finding as JSON and as Markdown.

    Raises:
        GateError: a protected capability fell, or one named as protected could not be compared.
    """
    uri = read_json(version, "version.json")["uri"]
    compared, left_out = compare_scores(Scores.read(now), Scores.read(registered), section)
    fallen = [comparison for comparison in compared if comparison.is_regression]
    found = {
        "version": uri,
        "capabilities": [asdict(comparison) for comparison in compared],
        "fallen": [comparison.capability for comparison in fallen],
        "left_out": left_out,
    }
    finding.parent.mkdir(parents=True, exist_ok=True)
    finding.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    page.write_text(markdown(uri, compared, left_out), encoding="utf-8")
    for comparison in compared:
        logger.info("%s", _told(comparison))
    for name, reason in left_out.items():
        logger.info("%s: not compared: %s", name, reason)
    if fallen:
        raise GateError(f"{uri} fell: {'; '.join(_told(comparison) for comparison in fallen)}")
    if missing := [name for name in section.protected if name in left_out]:
        raise GateError(f"{uri}: {missing[0]} is protected and could not be compared: {left_out[missing[0]]}")
    if not compared:
        raise GateError(f"{uri}: nothing could be compared: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}")
    logger.info("%s does what it did when it was registered", uri)
    return found


def compare_scores(now: Scores, then: Scores, section: GateConfig) -> tuple[list[Comparison], dict[str, str]]:
    """Compare capability by capability: paired where the examples are the same, else as two samples.

    Returns:
        The comparisons (`challenger` is today), and the capabilities that were left out, each with the reason.
    """
    compared, left_out = [], {}
    for name in sorted(then.examples):
        if section.protected and name not in section.protected:
            continue
        if name not in now.examples:
            left_out[name] = "these data do not measure it"
        elif not _alike(now.metrics[name], then.metrics[name]):
            left_out[name] = f"{now.metrics[name]} today, {then.metrics[name]} when it was registered"
        elif now.examples[name].keys() == then.examples[name].keys():
            pair = ({name: now.examples[name]}, {name: then.examples[name]})
            compared += compare(
                *pair,
                confidence=section.confidence,
                resamples=section.resamples,
                tolerance=section.tolerance,
                min_examples=section.min_examples,
                seed=section.seed,
            )
        else:
            compared.append(_two_samples(name, now.examples[name], then.examples[name], section))
    return compared, left_out


def _alike(one: str, other: str) -> bool:
    """Whether two metrics are the same but for counts that hardly differ, as in `R@1 of 500`."""
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return False
    counts = zip(map(int, NUMBER.findall(one)), map(int, NUMBER.findall(other)), strict=True)
    return all(abs(a - b) <= ALIKE * max(a, b) for a, b in counts)


def _two_samples(name: str, now: dict[str, float], then: dict[str, float], section: GateConfig) -> Comparison:
    """The difference of two means over different examples, with its percentile bootstrap interval (scipy)."""
    new, old = np.array(list(now.values())), np.array(list(then.values()))
    difference, n = float(new.mean() - old.mean()), min(len(new), len(old))
    low = high = difference
    if np.ptp(new) or np.ptp(old):  # else every resample is the same
        interval = bootstrap(
            (new, old),
            lambda a, b, axis: a.mean(axis) - b.mean(axis),
            vectorized=True,
            batch=100,
            n_resamples=section.resamples,
            confidence_level=section.confidence,
            method="percentile",
            rng=np.random.default_rng(section.seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    verdict: Literal["better", "same", "worse", "unsure"] = "better" if low > 0 else "same"
    if n < section.min_examples:
        verdict = "unsure"
    elif high < -section.tolerance:
        verdict = "worse"
    return Comparison(
        capability=name,
        n=n,
        challenger=float(new.mean()),
        champion=float(old.mean()),
        difference=difference,
        low=low,
        high=high,
        verdict=verdict,
    )


def _told(comparison: Comparison) -> str:
    return (
        f"{comparison.capability}: {comparison.challenger:.3f} today, {comparison.champion:.3f} as registered, "
        f"difference {comparison.difference:+.3f} [{comparison.low:+.3f}, {comparison.high:+.3f}]: {comparison.verdict}"
    )


def markdown(uri: str, compared: list[Comparison], left_out: dict[str, str]) -> str:
    """The finding for the UI: a headline, a row for each capability, and what was left out."""
    fallen = [comparison.capability for comparison in compared if comparison.is_regression]
    verdict = f"fell: {', '.join(fallen)}" if fallen else "does what it did when it was registered"
    lines = [f"**{uri} {verdict}**", "", "| capability | today | registered | difference | verdict |"]
    lines += ["|---|---|---|---|---|"]
    lines += [
        f"| {c.capability} | {c.challenger:.3f} | {c.champion:.3f} "
        f"| {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}] | {c.verdict} |"
        for c in compared
    ]
    lines += [f"| {name} | | | | not compared: {reason} |" for name, reason in left_out.items()]
    return "\n".join(lines) + "\n"
