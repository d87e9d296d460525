"""The ledger: one verdict for every row that came in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RULES = (  # in the order in which they judge; a row is dropped by the first one that it fails
    "undecodable",
    "too_small",
    "aspect",
    "blank",
    "noise",
    "junk_text",
    "exact_duplicate",
    "in_test_set",
    "near_duplicate",
    "clip_score",
)


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
        self.thresholds: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool: no rule has dropped the row."""
        return self.rule == ""

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

    def summary(self) -> dict[str, Any]:
        """Counts and thresholds. Rows in = kept + dropped by each rule: anything else is a bug."""
        kept, dropped = int(self.kept.sum()), self.dropped
        assert len(self) == kept + sum(dropped.values()), (len(self), kept, dropped)
        return {"rows_in": len(self), "kept": kept, "dropped": dropped, "thresholds": self.thresholds}

    def write(self, folder: Path, notes: dict[str, Any]) -> dict[str, Any]:
        """Write `ledger.parquet` and `summary.json` (with `notes` beside the counts); return the summary."""
        summary = self.summary() | notes
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.table(
            {
                "row": pa.array(np.arange(len(self)), pa.int64()),
                "uid": pa.array(self.uids, pa.string()),
                "split": pa.array(self.splits, pa.string()),
                "verdict": pa.array(np.where(self.kept, "kept", "dropped").tolist(), pa.string()),
                "rule": pa.array(self.rule.tolist(), pa.string()),
                "value": pa.array(self.value, pa.float64(), from_pandas=True),  # NaN becomes null: nothing measured
                "threshold": pa.array(self.threshold, pa.float64(), from_pandas=True),
                "detail": pa.array(self.detail.tolist(), pa.string()),
                "score": pa.array(self.score, pa.float64(), from_pandas=True),
            }
        )
        pq.write_table(table, folder / "ledger.parquet", compression="zstd")
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        return summary
