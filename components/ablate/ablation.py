"""Ablation of curation: the ledger contains the pairs that remain after each stage, so curation runs only once."""

import logging
from pathlib import Path

import pyarrow.parquet as pq

from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.ledger import RULES, STAGES
from vlmflow.errors import DataError

logger = logging.getLogger(__name__)


def survivors_after_stage(stage: str, raw: Path, ledger: Path, out: Path) -> Dataset:
    """Write the training pairs of `raw`, unchanged, that no rule up to the end of `stage` dropped.

    Raises:
        DataError: unknown stage, the ledger belongs to another dataset, or no pair remains.
    """
    if stage not in STAGES:
        raise DataError(f"ablate: unknown stage {stage!r}; choose from {', '.join(STAGES)}")
    pairs = Dataset(raw, "pairs")
    verdicts = pq.read_table(ledger / "ledger.parquet", columns=["uid", "rule"])
    if len(verdicts) != len(pairs):
        raise DataError(
            f"{ledger}: has {len(verdicts)} rows, but {raw} has {len(pairs)}; pass the ledger of this dataset"
        )
    surviving = {"", *RULES[RULES.index(STAGES[stage]) + 1 :]}
    rows = (
        row
        for row, uid, rule in zip(pairs.rows(), verdicts["uid"].to_pylist(), verdicts["rule"].to_pylist(), strict=True)
        if rule in surviving and row["split"] == "train" and _check_uid(uid, row["uid"], ledger)
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
        raise DataError(f"{raw}: no training pair remains after stage {stage!r}")
    logger.info("%d training pairs after %s", len(written), stage)
    return written


def _check_uid(expected: str, uid: str, ledger: Path) -> bool:
    if expected != uid:
        raise DataError(f"{ledger}: has uid {expected} where the dataset has {uid}; pass the ledger of this dataset")
    return True
