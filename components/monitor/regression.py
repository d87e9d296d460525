"""Comparison of a registered model on new data with its scores at registration: which capability got worse."""

import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlmflow.artifacts.json_file import read_json
from vlmflow.errors import GateError
from vlmflow.evaluation.comparison import Comparison, compare
from vlmflow.evaluation.config import GateConfig
from vlmflow.evaluation.intervals import mean_difference_interval
from vlmflow.evaluation.scores import read_examples, read_scores

logger = logging.getLogger(__name__)

COUNT_TOLERANCE = 0.05  # recall among 490 captions is comparable with recall among 500, and not among 100
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Scores:
    """Scores of a model: the metric of each capability, and a score for each example (higher is better)."""

    metrics: dict[str, str]
    examples: dict[str, dict[str, float]]

    @classmethod
    def read(cls, scores: Path) -> "Scores":
        """Read a scores artifact.

        Raises:
            DataError, ModelError: a file of the artifact is missing or damaged.
        """
        values = read_scores(scores)["capabilities"]
        return cls({name: value["metric"] for name, value in values.items()}, read_examples(scores))


def compare_with_registration(
    *, now: Path, registered: Path, version: Path, finding: Path, page: Path, section: GateConfig
) -> dict[str, Any]:
    """Compare current scores with those at registration; write the finding as JSON and as Markdown.

    Raises:
        GateError: a capability got worse, or a protected one could not be compared.
    """
    uri = read_json(version, "version.json")["uri"]
    compared, left_out = compare_scores(Scores.read(now), Scores.read(registered), section)
    regressions = [comparison for comparison in compared if comparison.is_regression]
    found = {
        "version": uri,
        "capabilities": [asdict(comparison) for comparison in compared],
        "regressions": [comparison.capability for comparison in regressions],
        "left_out": left_out,
    }
    finding.parent.mkdir(parents=True, exist_ok=True)
    finding.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    page.write_text(markdown(uri, compared, left_out), encoding="utf-8")
    for comparison in compared:
        logger.info("%s", _summary(comparison))
    for name, reason in left_out.items():
        logger.info("%s: not compared: %s", name, reason)
    if regressions:
        raise GateError(f"{uri} got worse: {'; '.join(_summary(comparison) for comparison in regressions)}")
    if missing := [name for name in section.protected if name in left_out]:
        raise GateError(f"{uri}: {missing[0]} is protected and could not be compared: {left_out[missing[0]]}")
    if not compared:
        raise GateError(
            f"{uri}: no capability could be compared: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}"
        )
    logger.info("%s: no regression since registration", uri)
    return found


def compare_scores(now: Scores, then: Scores, section: GateConfig) -> tuple[list[Comparison], dict[str, str]]:
    """Compare capability by capability: paired if the examples are the same, otherwise as two samples.

    Returns:
        The comparisons (`challenger` is the current score), and the reason for each capability that was left out.
    """
    compared, left_out = [], {}
    for name in sorted(then.examples):
        if section.protected and name not in section.protected:
            continue
        if name not in now.examples:
            left_out[name] = "not measured on the new data"
        elif not _same_metric(now.metrics[name], then.metrics[name]):
            left_out[name] = f"metric {now.metrics[name]} now, {then.metrics[name]} at registration"
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


def _same_metric(one: str, other: str) -> bool:
    """Whether two metrics are the same except for similar counts, as in `R@1 of 500` and `R@1 of 490`."""
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return False
    counts = zip(map(int, NUMBER.findall(one)), map(int, NUMBER.findall(other)), strict=True)
    return all(abs(a - b) <= COUNT_TOLERANCE * max(a, b) for a, b in counts)


def _two_samples(name: str, now: dict[str, float], then: dict[str, float], section: GateConfig) -> Comparison:
    """Compare the mean scores on two different sets of examples."""
    new, old = np.array(list(now.values())), np.array(list(then.values()))
    n = min(len(new), len(old))
    low, high = mean_difference_interval(
        new, old, confidence=section.confidence, resamples=section.resamples, seed=section.seed
    )
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
        difference=float(new.mean() - old.mean()),
        low=low,
        high=high,
        verdict=verdict,
    )


def _summary(comparison: Comparison) -> str:
    return (
        f"{comparison.capability}: {comparison.challenger:.3f} now, {comparison.champion:.3f} at registration, "
        f"difference {comparison.difference:+.3f} [{comparison.low:+.3f}, {comparison.high:+.3f}]: {comparison.verdict}"
    )


def markdown(uri: str, compared: list[Comparison], left_out: dict[str, str]) -> str:
    """The finding for the UI: a headline, a row for each capability, and the capabilities that were left out."""
    regressions = [comparison.capability for comparison in compared if comparison.is_regression]
    verdict = f"got worse: {', '.join(regressions)}" if regressions else "has no regression since registration"
    lines = [f"**{uri} {verdict}**", "", "| capability | now | registered | difference | verdict |"]
    lines += ["|---|---|---|---|---|"]
    lines += [
        f"| {c.capability} | {c.challenger:.3f} | {c.champion:.3f} "
        f"| {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}] | {c.verdict} |"
        for c in compared
    ]
    lines += [f"| {name} | | | | not compared: {reason} |" for name, reason in left_out.items()]
    return "\n".join(lines) + "\n"
