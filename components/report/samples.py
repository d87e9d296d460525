"""Examples for the page: thumbnails of pairs, answers with the true answer, and boxes to draw over an image."""

import itertools
import random
from dataclasses import dataclass
from math import isnan
from typing import Any

import pyarrow.parquet as pq

from components.report.artifacts import RunArtifacts, Stage
from vlmflow.artifacts.ledger import RULES, TAKEDOWN
from vlmflow.images.boxes import CODECS, Box
from vlmflow.images.thumbnails import thumbnail_uri

SIDE = 220  # px, the longer side of a thumbnail
DUPLICATE_RULES = (
    "exact_duplicate",
    "near_duplicate",
    "in_test_set",
    "altered_copy",
)  # their detail is the uid of the other pair


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A pair in the grid: `image` is a data URI, or "" if it cannot be decoded."""

    image: str
    caption: str
    annotations: str
    rule: str = ""
    measured: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer with the true one; `correct` is None if the score is neither 0 nor 1."""

    capability: str
    image: str
    width: int
    height: int
    prompt: str
    answer: str
    truth: str
    score: float
    correct: bool | None
    true_box: Box | None = None
    answered_box: Box | None = None


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """A preference pair."""

    image: str
    prompt: str
    chosen: str
    rejected: str
    source: str


def pairs(run: RunArtifacts, count: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Random kept pairs, and dropped pairs taken from the rules in turn, chosen by `seed`."""
    ledger = pq.read_table(run.paths.ledger / "ledger.parquet").to_pandas()
    rng = random.Random(seed)
    kept = ledger.index[ledger["verdict"] == "kept"].tolist()
    chosen = sorted(rng.sample(kept, min(count, len(kept))))
    by_rule = [ledger.index[ledger["rule"] == rule].tolist() for rule in RULES if rule != TAKEDOWN]
    rounds = itertools.zip_longest(*(rng.sample(rows, min(count, len(rows))) for rows in by_rule))
    dropped = [row for turn in rounds for row in turn if row is not None][:count]
    dropped.sort(key=lambda row: (RULES.index(ledger["rule"][row]), row))
    verdicts = ledger.to_dict("index")
    numbers = [verdicts[i]["row"] for i in chosen + dropped]
    found = dict(run.raw.rows_at(numbers, ["image", "caption", "label", "regions", "lines"]))
    shown = [_pair(found[verdicts[i]["row"]], verdicts[i]) for i in chosen + dropped]
    return shown[: len(chosen)], shown[len(chosen) :]


def _pair(row: dict[str, Any], verdict: dict[str, Any]) -> Pair:
    label = [f"label: {row['label']}"] if row["label"] else []
    counts = {"region": len(row["regions"] or []), "line": len(row["lines"] or [])}
    value, threshold = verdict["value"], verdict["threshold"]  # null if nothing was measured
    measured = "" if isnan(value) else f"{value:.3g}"
    detail = (
        "" if verdict["rule"] in ("", *DUPLICATE_RULES) else verdict["detail"]
    )  # the duplicate rules and kept rows show none
    return Pair(
        image=thumbnail_uri((row["image"] or {}).get("bytes"), SIDE),
        caption=row["caption"] or "",
        annotations=", ".join(label + [f"{n} {what}{'s' * (n > 1)}" for what, n in counts.items() if n]),
        rule=verdict["rule"],
        measured=detail or measured + ("" if isnan(threshold) else f" (threshold {threshold:.3g})"),
    )


def image_of(run: RunArtifacts, uid: str) -> str:
    """The image of the curated pair `uid` as a data URI, or "" if there is no such pair."""
    uids = run.curated.table(["uid"])["uid"].to_pylist()
    if uid not in uids:
        return ""
    row = uids.index(uid)
    return next(thumbnail_uri(found["image"]["bytes"], SIDE) for _, found in run.curated.rows_at([row], ["image"]))


def preferences(run: RunArtifacts, count: int, seed: int) -> list[PreferencePair]:
    """Random preference pairs, chosen by `seed`."""
    data = run.preferences
    numbers = sorted(random.Random(seed).sample(range(len(data)), min(count, len(data))))
    return [
        PreferencePair(
            image=thumbnail_uri(row["images"][0]["bytes"], SIDE) if row["images"] else "",
            **{key: row[key] for key in ("prompt", "chosen", "rejected", "source")},
        )
        for _, row in data.rows_at(numbers)
    ]


def answers(stage: Stage) -> dict[str, list[Answer]]:
    """The stage's samples by capability."""
    found: dict[str, list[Answer]] = {}
    for sample in stage.samples:
        found.setdefault(sample["capability"], []).append(_answer(sample, stage.box_convention))
    return found


def _answer(sample: dict[str, Any], convention: str) -> Answer:
    width, height = sample["size"]
    truth = CODECS["pixels"].decode(sample["truth"], width, height)  # the format in datasets
    return Answer(
        image=f"data:image/png;base64,{sample['image']}",
        width=width,
        height=height,
        correct={0.0: False, 1.0: True}.get(sample["score"]),
        true_box=truth,
        answered_box=CODECS[convention].decode(sample["answer"], width, height) if truth else None,
        **{key: sample[key] for key in ("capability", "prompt", "answer", "truth", "score")},
    )
