"""Ablation of curation: its ledger knows what was left after each stage, so nothing is curated twice."""

import logging
from pathlib import Path

import pyarrow.parquet as pq

from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.ledger import RULES, STAGES
from vlmflow.errors import DataError

logger = logging.getLogger(__name__)


def survivors_after_stage(stage: str, raw: Path, ledger: Path, out: Path) -> Dataset:
    """Write the training pairs of `raw`, as they came, that no rule up to the end of `stage` had dropped.

    Raises:
        DataError: no such stage, the ledger is another dataset's, or no pair is left.
    """
    if stage not in STAGES:
        raise DataError(f"ablate: stage {stage!r} is none of {', '.join(STAGES)}")
    pairs = Dataset(raw, "pairs")
    verdicts = pq.read_table(ledger / "ledger.parquet", columns=["uid", "rule"])
    if len(verdicts) != len(pairs):
        raise DataError(
            f"{ledger}: tells of {len(verdicts)} rows, {raw} has {len(pairs)}; give the ledger of this data"
        )
    later = {"", *RULES[RULES.index(STAGES[stage]) + 1 :]}
    rows = (
        row
        for row, uid, rule in zip(pairs.rows(), verdicts["uid"].to_pylist(), verdicts["rule"].to_pylist(), strict=True)
        if rule in later and row["split"] == "train" and _same(uid, row["uid"], ledger)
    )
    written = dataset.write(
        out,
        "pairs",
        rows,
        step="ablate",
        recipe={"stage": stage},
        parents=[pairs.hash],
        revision=pairs.card.revision,
    )
    if not len(written):
        raise DataError(f"{raw}: no training pair is left after stage {stage!r}")
    logger.info("%d training pairs after %s", len(written), stage)
    return written


def _same(told: str, found: str, ledger: Path) -> bool:
    if told != found:
        raise DataError(f"{ledger}: tells of {told} where the data has {found}; give the ledger of this data")
    return True
