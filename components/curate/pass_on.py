"""Without curation, the raw rows are passed on: conversations and preferences, or pairs that need none."""

import logging
import shutil
from pathlib import Path

from components.curate import score
from components.curate.funnel import Gallery, write_page
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.ledger import Ledger

logger = logging.getLogger(__name__)


def pass_on(raw: Path, curated: Path, ledger: Path, funnel: Path, scorer: Path, *, reason: str) -> None:
    """Copy the dataset `raw`, of any schema, to `curated`; write a ledger that keeps every row.

    Args:
        raw, curated, ledger, funnel, scorer: as of `curation.curate`.
        reason: why nothing is curated; it is in the ledger's summary and on the scorer's card.
    """
    logger.warning("not curated, all rows are passed on: %s", reason)
    data = Dataset(raw)
    shutil.copytree(raw, curated, dirs_exist_ok=True)
    columns = data.table(["uid", "split"]).to_pydict()
    verdicts = Ledger(columns["uid"], columns["split"])
    summary = verdicts.write(ledger, {"skipped": reason})
    write_page(funnel, verdicts, Gallery(verdicts, 0), summary)
    score.write_card(scorer, family="none", skipped=reason)
