"""The ledger: one verdict for every row that came in."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmflow.errors import DataError

TAKEDOWN = "takedown"
MEANING = {  # of the rules, in the order in which they judge; a row is dropped by the first one that it fails
    TAKEDOWN: "the pair, or its picture, stands on the exclusion list",
    "undecodable": "the picture file is damaged or is no picture",
    "too_small": "short side, px",
    "aspect": "long side over short side",
    "blank": "deviation of brightness, grey levels",
    "noise": "correlation of neighbouring pixels",
    "blurred": "variance of the Laplacian",
    "low_entropy": "bits of the histogram of brightness",
    "low_colour": "colourfulness",
    "junk_text": "a caption that says nothing",
    "too_long": "words of the caption",
    "language": "probability of the wanted languages",
    "complexity": "relations that the caption states",
    "bad_words": "listed words in the caption",
    "personal_data": "e-mail addresses or telephone numbers in the caption",
    "in_evaluation_set": "a training picture that an evaluation set holds, or a pair of one",
    "exact_duplicate": "the same picture with the same texts, again",
    "in_test_set": "a training picture that the test set holds",
    "near_duplicate": "the same picture in another size or file",
    "caption_duplicate": "place among the pictures of one caption",
    "clip_score": "cosine of picture and caption by the dual encoder",
    "disagreement": "rank of the caption's class among those that the encoder sees",
    "semantic_duplicate": "cosine to a picture that says the same",
    "off_reference": "reference pictures in its cluster",
    "crowded_cluster": "place in a cluster that has enough",
    "unbalanced": "probability of being kept, against the draw",
}
RULES = tuple(MEANING)

STAGES = {  # the last rule of each stage, in the order in which they judge
    "raw": "undecodable",  # what has no pixels can be learned from by nobody
    "pictures": "low_colour",
    "captions": "personal_data",
    "repeats": "caption_duplicate",
    "score": "disagreement",
    "diversity": "unbalanced",
}


class Ledger:
    """The verdicts, row by row: kept until a rule drops the row, and never judged again after that.

    Args:
        uids, splits: of the rows, in the dataset's order.
    """

    def __init__(self, uids: list[str], splits: list[str]):
        self.uids, self.splits = uids, splits
        self.rule = np.full(len(uids), "", dtype=object)
        self.value = np.full(len(uids), np.nan)
        self.threshold = np.full(len(uids), np.nan)
        self.detail = np.full(len(uids), "", dtype=object)
        self.partner = np.full(len(uids), -1)  # the row that a duplicate repeats
        self.score = np.full(len(uids), np.nan)  # of the dual encoder, where it was asked
        self.web: dict[int, str] = {}  # the caption that came, of rows for which a captioner proposed another
        self.proposed: dict[int, tuple[str, float]] = {}  # the captioner's, and its score
        self.thresholds: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool: no rule has dropped the row."""
        return self.rule == ""

    @property
    def verdict(self) -> np.ndarray:
        """(N,) kept, dropped, or excluded: what was taken down is no matter of worth."""
        return np.where(self.kept, "kept", np.where(self.rule == TAKEDOWN, "excluded", "dropped"))

    @property
    def dropped(self) -> dict[str, int]:
        """Rows dropped by each rule, in the rules' order."""
        return {rule: int((self.rule == rule).sum()) for rule in RULES}

    def drop(
        self,
        rule: str,
        failed: np.ndarray,
        value: np.ndarray | None = None,
        threshold: float | np.ndarray | None = None,
        partner: np.ndarray | None = None,
    ) -> np.ndarray:
        """Drop the rows that fail and are still kept; return their numbers.

        Args:
            failed: (N,) bool. value, threshold, partner: (N,), or one threshold for all.
        """
        assert rule in RULES, rule
        rows = np.flatnonzero(failed & self.kept)
        self.rule[rows] = rule
        if value is not None:
            self.value[rows] = value[rows]
        if threshold is not None:
            self.threshold[rows] = threshold[rows] if isinstance(threshold, np.ndarray) else threshold
            if not isinstance(threshold, np.ndarray):
                self.thresholds[rule] = threshold
        if partner is not None:
            self.partner[rows] = partner[rows]
            self.detail[rows] = [self.uids[i] for i in partner[rows]]
        return rows

    def note(self, rows: Iterable[int], notes: Iterable[str]) -> None:
        """Add to what is said of each of `rows`, whether it is kept or not."""
        for row, said in zip(rows, notes, strict=True):
            self.detail[row] = "; ".join(filter(None, [self.detail[row], said]))

    def summary(self) -> dict[str, Any]:
        """Counts and thresholds. Rows in = kept + dropped by each rule: anything else is a bug."""
        kept, dropped = int(self.kept.sum()), self.dropped
        assert len(self) == kept + sum(dropped.values()), (len(self), kept, dropped)
        return {"rows_in": len(self), "kept": kept, "dropped": dropped, "thresholds": self.thresholds}

    def write(self, folder: Path, notes: dict[str, Any]) -> dict[str, Any]:
        """Write `ledger.parquet` and `summary.json` (with `notes` beside the counts); return the summary."""
        summary = self.summary() | notes
        folder.mkdir(parents=True, exist_ok=True)
        proposed = [self.proposed.get(row, (None, None)) for row in range(len(self))]
        table = pa.table(
            {
                "row": pa.array(np.arange(len(self)), pa.int64()),
                "uid": pa.array(self.uids, pa.string()),
                "split": pa.array(self.splits, pa.string()),
                "verdict": pa.array(self.verdict.tolist(), pa.string()),
                "rule": pa.array(self.rule.tolist(), pa.string()),
                "value": pa.array(self.value, pa.float64(), from_pandas=True),  # NaN becomes null: nothing measured
                "threshold": pa.array(self.threshold, pa.float64(), from_pandas=True),
                "detail": pa.array(self.detail.tolist(), pa.string()),
                "score": pa.array(self.score, pa.float64(), from_pandas=True),
                "web_caption": pa.array([self.web.get(row) for row in range(len(self))], pa.string()),
                "proposed_caption": pa.array([caption for caption, _ in proposed], pa.string()),
                "proposed_score": pa.array([score for _, score in proposed], pa.float64()),
            }
        )
        pq.write_table(table, folder / "ledger.parquet", compression="zstd")
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        return summary


def history(ledger: Path, uid: str) -> list[str]:
    """What happened to one pair and why, in a few lines.

    Args:
        ledger: the folder that `Ledger.write` wrote, or its parquet file. uid: whole, or how it begins.

    Raises:
        DataError: no ledger there, no such pair in it, or several that begin so.
    """
    file = ledger / "ledger.parquet" if ledger.is_dir() else ledger
    if not file.exists():
        raise DataError(f"{ledger}: no ledger here; give the folder that curate wrote, or a run's folder")
    rows = pq.read_table(file, filters=_begins(uid)).to_pylist()
    uids = sorted({row["uid"] for row in rows})
    if not uids:
        raise DataError(f"{uid}: no such pair in {file}; the uids are those of the raw dataset")
    if len(uids) > 1:
        raise DataError(f"{uid}: {len(uids)} pairs begin so in {file}: {uids[0]}, {uids[1]}, …; give more of it")
    return [line for row in rows for line in _story(row)]


def _begins(uid: str) -> pc.Expression:
    """The condition that a row's uid begins so, as the range that the file's statistics know."""
    return (pc.field("uid") >= uid) & (pc.field("uid") < uid + "\U0010ffff")


def _story(row: dict[str, Any]) -> Iterator[str]:
    what = f"pair {row['uid']} (row {row['row']}, {row['split']} split)"
    if row["verdict"] == "kept":
        yield f"{what}: kept; no rule of {len(RULES)} has anything against it"
    else:
        against = "" if row["threshold"] is None else f" against a threshold of {row['threshold']:.4g}"
        measured = "" if row["value"] is None else f", {row['value']:.4g}{against}"
        passed = RULES.index(row["rule"])
        meaning = f"{row['verdict']} by {row['rule']} ({MEANING[row['rule']]})"
        yield f"{what}: {meaning}{measured}; passed {passed} rules before it"
    if row["detail"]:
        yield f"  {'because of ' if row['verdict'] == 'dropped' else ''}{row['detail']}"
    if row["score"] is not None:
        yield f"  the encoder's cosine of picture and caption: {row['score']:.4f}"
    if row["proposed_caption"] is not None:
        yield f"  the caption that came: {row['web_caption']!r}"
        yield f"  the captioner's: {row['proposed_caption']!r}, cosine {row['proposed_score']:.4f}"
