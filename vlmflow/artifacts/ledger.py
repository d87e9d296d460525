"""The ledger of curation: a verdict for every input row."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmflow.errors import DataError

TAKEDOWN = "takedown"
MEANING = {  # the rules, in the order in which they are applied; the first rule that a row fails drops it
    TAKEDOWN: "the pair, or its image, is on the exclusion list",
    "undecodable": "the image file is damaged or not an image",
    "too_small": "short side in pixels",
    "aspect_ratio": "long side over short side",
    "blank": "standard deviation of brightness, in grey levels",
    "noise": "correlation of neighbouring pixels",
    "blurred": "variance of the Laplacian",
    "low_entropy": "entropy of the brightness histogram, in bits",
    "low_colorfulness": "colourfulness",
    "junk_text": "caption without content: empty, file name, URL, boilerplate",
    "caption_too_long": "words in the caption",
    "language": "probability of the accepted languages",
    "low_complexity": "relations between things in the caption",
    "blocklist": "blocklisted phrases in the caption",
    "pii": "e-mail addresses or telephone numbers in the caption",
    "in_evaluation_set": "training image or pair that is in an evaluation set",
    "exact_duplicate": "same image and same texts as another pair",
    "in_test_set": "training image that is in the test split",
    "altered_copy": "similarity to a mirrored, turned, cropped, framed, brightened or grey test image",
    "near_duplicate": "same image in another size or encoding",
    "caption_duplicate": "rank among the images with this caption",
    "clip_score": "cosine of image and caption by the dual encoder",
    "label_mismatch": "rank of the caption's class in the zero-shot classification of the image",
    "semantic_duplicate": "cosine to a similar image in its cluster",
    "outside_reference": "reference images in its cluster",
    "crowded_cluster": "rank in a cluster that is larger than the limit",
    "balancing": "probability of being kept, compared with a random draw",
}
RULES = tuple(MEANING)
# Of the test split only these rules drop rows: an image without pixels cannot be scored, an identical row is no second
# example, and takedowns and personal data are obligations. What else is wrong with a held-out row is reported.
EVERY_SPLIT = frozenset([TAKEDOWN, "undecodable", "exact_duplicate", "pii"])

STAGES = {  # the last rule of each stage, in order
    "raw": "undecodable",  # without pixels there is nothing to train on
    "images": "low_colorfulness",
    "captions": "pii",
    "duplicates": "caption_duplicate",
    "score": "label_mismatch",
    "diversity": "balancing",
}


class Ledger:
    """The verdicts of N rows. A row is kept until a rule drops it; later rules do not change that.

    The test split stays as it is: a held-out row that fails a rule is kept, and the first such rule is its `fault`. The
    rules of `EVERY_SPLIT` are the exceptions.

    Args:
        uids, splits: of the rows, in the order of the dataset.
    """

    def __init__(self, uids: list[str], splits: list[str]):
        self.uids, self.splits = uids, splits
        self.held_out = np.array([split == "test" for split in splits], dtype=bool)
        self.rule = np.full(len(uids), "", dtype=object)
        self.fault = np.full(len(uids), "", dtype=object)  # the first rule that a kept row of the test split fails
        self.value = np.full(len(uids), np.nan)
        self.threshold = np.full(len(uids), np.nan)
        self.detail = np.full(len(uids), "", dtype=object)
        self.partner = np.full(len(uids), -1)  # the row that a duplicate copies
        self.score = np.full(len(uids), np.nan)  # cosine by the dual encoder, NaN where not scored
        self.web_captions: dict[int, str] = {}  # original captions of recaptioned rows
        self.proposed_captions: dict[int, tuple[str, float]] = {}  # captions by the captioner and their scores
        self.thresholds: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool: no rule has dropped the row."""
        return self.rule == ""

    @property
    def verdict(self) -> np.ndarray:
        """(N,) str: kept, dropped, or excluded (taken down)."""
        return np.where(self.kept, "kept", np.where(self.rule == TAKEDOWN, "excluded", "dropped"))

    @property
    def dropped(self) -> dict[str, int]:
        """Number of rows dropped by each rule, in the order of the rules."""
        return {rule: int((self.rule == rule).sum()) for rule in RULES}

    @property
    def faults(self) -> dict[str, int]:
        """Number of kept rows of the test split that fail each rule, in the order of the rules; without zeros."""
        return {rule: count for rule in RULES if (count := int((self.fault == rule).sum()))}

    def drop(
        self,
        rule: str,
        failed: np.ndarray,
        value: np.ndarray | None = None,
        threshold: float | np.ndarray | None = None,
        partner: np.ndarray | None = None,
        detail: Mapping[int, str] | None = None,
    ) -> np.ndarray:
        """Drop the rows that fail the rule and are still kept, and report those of the test split.

        Args:
            failed: (N,) bool. value: (N,) measured. threshold: one for all rows, or (N,).
            partner: (N,) row numbers of the originals of duplicates. detail: why each failed row failed, by row.

        Returns:
            The numbers of the dropped rows.
        """
        assert rule in RULES, rule
        failed = failed & self.kept
        reported = failed & self.held_out & (rule not in EVERY_SPLIT)
        rows = np.flatnonzero(failed & ~reported)
        self.rule[rows] = rule
        if value is not None:
            self.value[rows] = value[rows]
        if threshold is not None:
            self.threshold[rows] = threshold[rows] if isinstance(threshold, np.ndarray) else threshold
            if not isinstance(threshold, np.ndarray):
                self.thresholds[rule] = threshold
        if partner is not None:
            self.partner[rows] = partner[rows]
            detail = {row: self.uids[partner[row]] for row in np.flatnonzero(failed).tolist()}
        if detail is not None:
            self.detail[rows] = [detail[row] for row in rows.tolist()]
        for row in np.flatnonzero(reported & (self.fault == "")).tolist():
            self.fault[row] = rule
            measured = "" if value is None or np.isnan(value[row]) else f"{value[row]:.4g}"
            self.add_note(
                [row], ["held out, fails " + " ".join(filter(None, [rule, measured, (detail or {}).get(row)]))]
            )
        return rows

    def add_note(self, rows: Iterable[int], notes: Iterable[str]) -> None:
        """Append a note to the detail of each of `rows`, kept or dropped."""
        for row, note in zip(rows, notes, strict=True):
            self.detail[row] = "; ".join(filter(None, [self.detail[row], note]))

    def summary(self) -> dict[str, Any]:
        """Return counts and thresholds. Input rows = kept + dropped by each rule is asserted."""
        kept, dropped = int(self.kept.sum()), self.dropped
        assert len(self) == kept + sum(dropped.values()), (len(self), kept, dropped)
        counts = {"rows_in": len(self), "kept": kept, "dropped": dropped, "held_out_faults": self.faults}
        return counts | {"thresholds": self.thresholds}

    def write(self, folder: Path, notes: dict[str, Any]) -> dict[str, Any]:
        """Write `ledger.parquet` and `summary.json` (counts and `notes`); return the summary."""
        summary = self.summary() | notes
        folder.mkdir(parents=True, exist_ok=True)
        proposed = [self.proposed_captions.get(row, (None, None)) for row in range(len(self))]
        table = pa.table(
            {
                "row": pa.array(np.arange(len(self)), pa.int64()),
                "uid": pa.array(self.uids, pa.string()),
                "split": pa.array(self.splits, pa.string()),
                "verdict": pa.array(self.verdict.tolist(), pa.string()),
                "rule": pa.array(self.rule.tolist(), pa.string()),
                "fault": pa.array(self.fault.tolist(), pa.string()),
                "value": pa.array(self.value, pa.float64(), from_pandas=True),  # NaN, not measured, becomes null
                "threshold": pa.array(self.threshold, pa.float64(), from_pandas=True),
                "detail": pa.array(self.detail.tolist(), pa.string()),
                "score": pa.array(self.score, pa.float64(), from_pandas=True),
                "web_caption": pa.array([self.web_captions.get(row) for row in range(len(self))], pa.string()),
                "proposed_caption": pa.array([caption for caption, _ in proposed], pa.string()),
                "proposed_score": pa.array([score for _, score in proposed], pa.float64()),
            }
        )
        pq.write_table(table, folder / "ledger.parquet", compression="zstd")
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        return summary


def history(ledger: Path, uid: str) -> list[str]:
    """Explain the verdict on a pair in a few lines.

    Args:
        ledger: folder written by `Ledger.write`, or its parquet file. uid: of the pair, or a unique prefix.

    Raises:
        DataError: there is no ledger, the pair is not in it, or the prefix is ambiguous.
    """
    file = ledger / "ledger.parquet" if ledger.is_dir() else ledger
    if not file.exists():
        raise DataError(f"{ledger}: no ledger found; pass the ledger folder of curate, or the folder of a run")
    rows = pq.read_table(file, filters=_uid_starts_with(uid)).to_pylist()
    uids = sorted({row["uid"] for row in rows})
    if not uids:
        raise DataError(f"{uid}: no such pair in {file}; use a uid of the raw dataset")
    if len(uids) > 1:
        raise DataError(
            f"{uid}: {len(uids)} pairs in {file} have this prefix: {uids[0]}, {uids[1]}, …; use a longer prefix"
        )
    return [line for row in rows for line in _format_history(row)]


def _uid_starts_with(uid: str) -> pc.Expression:
    """Return the filter for a uid prefix, as a range, so that the file's statistics can skip row groups."""
    return (pc.field("uid") >= uid) & (pc.field("uid") < uid + "\U0010ffff")


def _format_history(row: dict[str, Any]) -> Iterator[str]:
    pair = f"pair {row['uid']} (row {row['row']}, {row['split']} split)"
    if row["verdict"] == "kept":
        passed = "reported, because it is held out" if row.get("fault") else f"passed all {len(RULES)} rules"
        yield f"{pair}: kept; {passed}"
    else:
        threshold = "" if row["threshold"] is None else f", threshold {row['threshold']:.4g}"
        measured = "" if row["value"] is None else f": {row['value']:.4g}{threshold}"
        passed = RULES.index(row["rule"])
        meaning = f"{row['verdict']} by {row['rule']} ({MEANING[row['rule']]})"
        yield f"{pair}: {meaning}{measured}; passed {passed} rules before it"
    if row["detail"]:
        yield f"  {'because of ' if row['verdict'] == 'dropped' else ''}{row['detail']}"
    if row["score"] is not None:
        yield f"  image-text score: {row['score']:.4f}"
    if row["proposed_caption"] is not None:
        yield f"  original caption: {row['web_caption']!r}"
        yield f"  proposed caption: {row['proposed_caption']!r}, score {row['proposed_score']:.4f}"
