"""Measurement of the suites: values with intervals, controls without the right image, and sample answers."""

import base64
import io
import logging
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from vlmflow.artifacts.dataset import Dataset
from vlmflow.evaluation.capabilities import Question, Result
from vlmflow.evaluation.config import CONTROLS, EvaluateConfig
from vlmflow.evaluation.intervals import macro_interval, ratio_interval
from vlmflow.evaluation.suites import Suite, build_suites
from vlmflow.inference.loading import LoadedModel, load
from vlmflow.runtime.process import configure_logging

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SuiteResult:
    """Result of one suite: a value for each capability, a score for each example and a few sample answers."""

    values: dict[str, dict[str, Any]]
    examples: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    confusion: dict[str, Any] | None = None
    not_measured: dict[str, str] = field(default_factory=dict)  # why a capability that the model has is missing


def measure(
    model: Path, pairs: Path, conversations: Path, section: EvaluateConfig, rank: int
) -> dict[str, SuiteResult]:
    """Measure the suites of process `rank`: each `section.processes`-th one.

    Returns:
        The results by the suite's name; process 0 adds what cannot be measured.
    """
    configure_logging()
    loaded = load(model)
    suites, missing = build_suites(loaded, Dataset(pairs), Dataset(conversations, "conversations"), section)
    names = list(suites)[rank :: section.processes]
    results = {name: _measure_with_controls(loaded, suites[name], name, section) for name in names}
    if rank == 0:
        for name, reason in missing.items():
            logger.warning("%s is not measured: %s", name, reason)
        results["not measured"] = SuiteResult({}, [], [], not_measured=missing)
    return results


def _measure_with_controls(loaded: LoadedModel, suite: Suite, name: str, section: EvaluateConfig) -> SuiteResult:
    results = _run(loaded, suite, name)
    count = len(suite.items) if suite.joint else min(len(suite.items), section.control_questions)
    controls = {kind: _run(loaded, build_control(suite, kind, count, section.seed), name) for kind in CONTROLS}
    values, examples = {}, []
    for capability, result in results.items():
        value = values[capability] = {
            **value_with_interval(result, section),
            "n": len(result.score),
            "available": suite.available or len(result.score),
            "metric": result.metric,
            "higher_is_better": result.higher_is_better,
            "needs_image": result.needs_image,
            "secondary": {name: value_with_interval(more, section) for name, more in result.secondary.items()},
            "extras": result.extras,
            "controls": {kind: value_with_interval(found[capability], section) for kind, found in controls.items()},
        }
        logger.info("%s %.3f [%.3f, %.3f]", capability, value["value"], value["low"], value["high"])
        gains = zip(suite.uids, result.gain.tolist(), strict=True)
        examples += [{"capability": capability, "example": uid, "score": gain} for uid, gain in gains]
    confusion = next((result.confusion for result in results.values() if result.confusion), None)
    return SuiteResult(values, examples, _samples(suite, results, name, section), confusion)


def _run(loaded: LoadedModel, suite: Suite, name: str) -> dict[str, Result]:
    result = suite.measure(loaded, suite.images, suite.items)
    return result if isinstance(result, dict) else {name: result}


def value_with_interval(result: Result, section: EvaluateConfig) -> dict[str, float]:
    """Value of a result and its percentile bootstrap interval over examples."""
    options = {"confidence": section.confidence, "resamples": section.resamples, "seed": section.seed}
    if result.groups is None:
        low, high = ratio_interval(result.score, result.weight, **options)
    else:
        low, high = macro_interval(result.score, result.groups, **options)
    return {"value": result.value, "low": low, "high": high}


def build_control(suite: Suite, kind: str, count: int, seed: int) -> Suite:
    """The first `count` items with blank images (`blank`), or each with another item's image (`shuffled`)."""
    if kind == "blank":
        images = [Image.new("RGB", image.size, (96, 96, 96)) for image in suite.images[:count]]
    else:
        ring = list(range(count))  # each item gets the image of the next one in a shuffled ring, so never its own
        random.Random(seed).shuffle(ring)
        successor = dict(zip(ring, ring[1:] + ring[:1], strict=True))
        images = [suite.images[successor[i]] for i in range(count)]
    return replace(suite, images=images, uids=suite.uids[:count], items=suite.items[:count])


def _samples(suite: Suite, results: dict[str, Result], name: str, section: EvaluateConfig) -> list[dict[str, Any]]:
    """A few answers with their images, chosen at random, whether right or wrong."""
    result = next(iter(results.values()))
    if not result.answers:
        return []
    chosen = random.Random(section.seed).sample(range(len(suite.items)), min(section.samples, len(suite.items)))
    rows = []
    for i in sorted(chosen):
        question: Question = suite.items[i]
        rows.append(
            {
                "capability": name,
                "uid": question.uid,
                "image": base64.b64encode(_png(suite.images[i])).decode(),
                "size": list(question.size),
                "prompt": question.prompt,
                "answer": result.answers[i],
                "truth": question.answer,
                "score": float(result.score[i]),
            }
        )
    return rows


def _png(image: Image.Image) -> bytes:
    """A PNG of at most 256 × 256 pixels."""
    image = image.copy()
    image.thumbnail((256, 256))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
