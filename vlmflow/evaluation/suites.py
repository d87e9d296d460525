"""The measurements that a model and a test split allow, each with its controls."""

import base64
import io
import logging
import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import bootstrap
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from vlmflow.artifacts.dataset import Dataset
from vlmflow.evaluation import capabilities as can
from vlmflow.evaluation import masked, objects
from vlmflow.evaluation.capabilities import Question, Result
from vlmflow.evaluation.config import CONTROLS, EvaluateConfig
from vlmflow.images.decoding import decode
from vlmflow.inference.loading import Loaded, load
from vlmflow.runtime.process import configure_logging

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SuiteResult:
    """What one suite came to: a value for each capability, a score for each example, a few answers to look at."""

    values: dict[str, dict[str, Any]]
    examples: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    confusion: dict[str, Any] | None = None


@dataclass
class Suite:
    """One measurement: its pictures, the examples' uids and the function that scores them.

    `whole`: an example's score hangs on the others, as recall does on all captions, so a control must have as many.
    """

    images: list[Image.Image]
    uids: list[str]
    measure: Any  # (loaded, pictures, items) -> Result or {capability: Result}
    items: list[Any]
    whole: bool = False


def measure(
    model: Path, pairs: Path, conversations: Path, section: EvaluateConfig, rank: int
) -> dict[str, SuiteResult]:
    """Measure every `section.processes`-th suite, from `share` on; returns them by the suite's name."""
    configure_logging()
    loaded = load(model)
    found = build_suites(loaded, Dataset(pairs, "pairs"), Dataset(conversations, "conversations"), section)
    return {name: _with_controls(loaded, found[name], name, section) for name in list(found)[rank :: section.processes]}


def _with_controls(loaded: Loaded, suite: Suite, name: str, section: EvaluateConfig) -> SuiteResult:
    results = _measure(loaded, suite, name)
    few = len(suite.items) if suite.whole else min(len(suite.items), section.control_questions)
    controls = {kind: _measure(loaded, _build_control(suite, kind, few, section.seed), name) for kind in CONTROLS}
    values, examples = {}, []
    for capability, result in results.items():
        values[capability] = {
            **value_with_interval(result, section),
            "n": len(result.score),
            "metric": result.metric,
            "higher_is_better": result.higher_is_better,
            "extras": result.extras,
            "controls": {kind: value_with_interval(found[capability], section) for kind, found in controls.items()},
        }
        value = values[capability]
        logger.info("%s %.3f [%.3f, %.3f]", capability, value["value"], value["low"], value["high"])
        gains = zip(suite.uids, result.gain.tolist(), strict=True)
        examples += [{"capability": capability, "example": uid, "score": gain} for uid, gain in gains]
    confusion = next((result.confusion for result in results.values() if result.confusion), None)
    return SuiteResult(values, examples, _samples(suite, results, name, section), confusion)


def build_suites(loaded: Loaded, pairs: Dataset, conversations: Dataset, section: EvaluateConfig) -> dict[str, Suite]:
    """The measurements that the model's abilities and the test split allow."""
    found = build_pair_suites(loaded, pairs, section)
    by_task: dict[str, list[tuple[dict[str, Any], int, str, str]]] = {}
    for row in conversations.rows():
        if row["split"] != "test":
            continue
        contents = [message["content"] for message in row["messages"]]
        for turn, (question, answer) in enumerate(zip(contents[::2], contents[1::2], strict=True)):
            by_task.setdefault(row["task"], []).append((row, turn, question, answer))
    vocabulary = conversations.card.notes.get("categories", [])
    measures = {
        "describe": ("caption", can.captioning),
        "objects": ("caption", partial(can.object_listing, vocabulary=vocabulary)),
        "grounding": ("ground", can.grounding),
        "reading": ("ocr", can.text_recognition),
        "yes-no": ("chat", can.pope),
    }
    for name, (ability, measure) in measures.items():
        task = {"describe": "caption", "grounding": "ground", "reading": "ocr", "yes-no": "vqa"}.get(name, name)
        if ability in loaded.abilities and len(by_task.get(task, [])) > 1:
            found[name] = _question_suite(by_task[task], measure, section)
    if "score" in loaded.abilities and "objects" in found and len(vocabulary) > 1:
        known = found["objects"]
        wrong = [(q, swap_one_object(q, vocabulary, section.seed)) for q in known.items]
        keep = [i for i, (_, answer) in enumerate(wrong) if answer is not None]
        if len(keep) > 1:
            found["preference"] = Suite(
                [known.images[i] for i in keep],
                [known.uids[i] for i in keep],
                can.preference,
                [wrong[i] for i in keep],
            )
    return found


def build_pair_suites(loaded: Loaded, pairs: Dataset, section: EvaluateConfig) -> dict[str, Suite]:
    """The measurements on captioned and on labelled pictures."""
    can_do, found = loaded.abilities, {}
    if not can_do & {"classify", "rank", "represent", "match", "fill", "reconstruct"} and not section.held_out_loss:
        return found
    rows = list(pairs.rows(["uid", "image", "caption", "label", "split"]))
    test = [row for row in rows if row["split"] == "test"]
    captioned = _choose([r for r in test if r["caption"].strip()], section.limit, section.seed)
    labelled = _choose([r for r in test if r["label"]], section.limit, section.seed)
    captions = [row["caption"] for row in captioned]
    if len(captioned) > 1:
        if "rank" in can_do:
            found["retrieval"] = _pair_suite(captioned, can.retrieval, captions, whole=True)
        if "match" in can_do:
            found["matching"] = _pair_suite(
                captioned, masked.image_text_matching, list(zip(captions, _different_captions(captions), strict=True))
            )
        if "fill" in can_do and (
            told := [(r, w) for r in captioned if (w := choose_hidden_word(r, section.seed)) is not None]
        ):
            items = [(row["caption"], word) for row, word in told]
            found["filling"] = _pair_suite([row for row, _ in told], masked.fill_mask, items)
        if "reconstruct" in can_do:
            suite = _pair_suite(captioned, partial(masked.reconstruction, seed=section.seed), captions, whole=True)
            found["reconstruction"] = replace(suite, items=list(zip(suite.images, captions, strict=True)))
    if len(classes := {row["label"] for row in labelled}) > 1:
        labels = [row["label"] for row in labelled]
        if "classify" in can_do:
            found["zero-shot"] = _pair_suite(labelled, can.zero_shot, labels, whole=True)
        known = [row for row in rows if row["split"] == "train" and row["label"] in classes]
        if "represent" in can_do and len({row["label"] for row in known}) > 1:
            probe = masked.Probe(loaded, _pictures(known), [row["label"] for row in known])
            found["probe"] = _pair_suite(labelled, probe, labels)
    if section.held_out_loss and len(captioned) >= 2 * section.loss_batch:
        measure = partial(masked.held_out_loss, batch_size=section.loss_batch, seed=section.seed)
        suite = _pair_suite(captioned, measure, captions, whole=True)
        found["held-out loss"] = replace(
            suite, uids=[f"batch {i}" for i in range(len(captioned) // section.loss_batch)]
        )
    return found


def _different_captions(captions: list[str]) -> list[str]:
    """For each caption the next one that differs."""
    count = len(captions)
    return [next((c for c in captions[i + 1 :] + captions[:i] if c != captions[i]), "") for i in range(count)]


def choose_hidden_word(row: dict[str, Any], seed: int) -> int | None:
    """Which word of the caption to hide, by its place: one that says something; None where there is none."""
    telling = content_words(row["caption"])
    return random.Random(f"{seed}/{row['uid']}").choice(telling) if telling else None


def content_words(caption: str) -> list[int]:
    """The places of the words that say something."""
    words = caption.split()
    return [i for i, word in enumerate(words) if word.lower().strip(".,;:!?") not in ENGLISH_STOP_WORDS]


def swap_one_object(question: Question, vocabulary: list[str], seed: int) -> str | None:
    """The true list with one object turned into a kind that is not there; None where every kind is."""
    rng = random.Random(f"{seed}/{question.uid}")
    true = objects.parse(question.answer, vocabulary)
    absent = [c for c in vocabulary if c not in true]
    if not absent or not true:
        return None
    swapped = rng.choice(sorted(true))
    new = rng.choice(absent)
    return objects.list_objects([new if c == swapped else c for c in true.elements()])


def value_with_interval(result: Result, section: EvaluateConfig) -> dict[str, float]:
    """Value with its percentile bootstrap interval over examples (scipy)."""

    def ratio(score: np.ndarray, weight: np.ndarray, axis: int = -1) -> np.ndarray:
        return score.sum(axis) / weight.sum(axis)

    value = float(ratio(result.score, result.weight))
    if np.ptp(result.score / result.weight) == 0:  # every resample is the same
        return {"value": value, "low": value, "high": value}
    found = bootstrap(
        (result.score, result.weight),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=section.resamples,
        confidence_level=section.confidence,
        method="percentile",
        rng=np.random.default_rng(section.seed),
    ).confidence_interval
    return {"value": value, "low": float(found.low), "high": float(found.high)}


def _measure(loaded: Loaded, suite: Suite, name: str) -> dict[str, Result]:
    result = suite.measure(loaded, suite.images, suite.items)
    return result if isinstance(result, dict) else {name: result}


def _build_control(suite: Suite, kind: str, count: int, seed: int) -> Suite:
    """The first `count` items with blank pictures, or each with the next one's picture in a shuffled ring."""
    if kind == "blank":
        pictures = [Image.new("RGB", picture.size, (96, 96, 96)) for picture in suite.images[:count]]
    else:
        ring = list(range(count))
        random.Random(seed).shuffle(ring)
        after = dict(zip(ring, ring[1:] + ring[:1], strict=True))
        pictures = [suite.images[after[i]] for i in range(count)]
    return replace(suite, pictures=pictures, uids=suite.uids[:count], items=suite.items[:count])


def _choose(rows: list[Any], count: int, seed: int) -> list[Any]:
    """At most `count` rows, drawn by `seed`, in their own order."""
    if len(rows) <= count:
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), count))]


def _pair_suite(rows: list[dict[str, Any]], measure: Any, items: list[Any], whole: bool = False) -> Suite:
    return Suite(_pictures(rows), [row["uid"] for row in rows], measure, items, whole)


def _pictures(rows: list[dict[str, Any]]) -> list[Image.Image]:
    return [decode(row["image"]["bytes"]) for row in rows]


def _question_suite(turns: list[tuple[dict[str, Any], int, str, str]], measure: Any, section: EvaluateConfig) -> Suite:
    pictures, uids, questions = [], [], []
    for row, turn, question, answer in _choose(turns, section.questions, section.seed):
        picture = decode(row["images"][0]["bytes"])
        pictures.append(picture)
        uids.append(f"{row['uid']}/{turn}")
        questions.append(Question(uids[-1], picture.size, question, answer))
    return Suite(pictures, uids, measure, questions)


def _samples(suite: Suite, results: dict[str, Result], name: str, section: EvaluateConfig) -> list[dict[str, Any]]:
    """A few answers with their pictures, drawn without regard to whether they are right."""
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


def _png(picture: Image.Image) -> bytes:
    picture = picture.copy()
    picture.thumbnail((256, 256))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
