"""Curation: from raw pairs to the ones worth learning from."""

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from components.curate import encoder_filters, rules, score, vector_filters
from components.curate import funnel as chart
from components.curate.candidates import Candidates
from components.curate.config import CurateConfig
from components.curate.engine import Engine
from components.curate.features import measure
from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.ledger import Ledger
from vlmflow.errors import DataError
from vlmflow.runtime.jobs.rayjob import on_ray
from vlmflow.runtime.step_cache import key

logger = logging.getLogger(__name__)


def curate(raw: Path, curated: Path, ledger: Path, funnel: Path, scorer: Path, section: CurateConfig) -> Dataset:
    """Keep the pairs worth learning from, and write a verdict for every one.

    1. Measure every picture and caption, once.
    2. Drop what was taken down, the pictures that show nothing and the captions that say nothing.
    3. Drop what stands there twice, and training pictures that the test set holds.
    4. Score the training pairs that are left with a dual encoder, and drop the low ones.
    5. Choose among the good ones: no meaning twice, and no subject too often.
    6. Write the kept rows, the verdict of every row, and the funnel.

    Args:
        raw: dataset of schema `pairs`. curated: where the kept rows go, unchanged and in order, but for captions:
            a useless one of an annotated picture becomes "", and the recipe may rewrite others.
        ledger: a folder for `ledger.parquet` and `summary.json`. funnel: an HTML file.
        scorer: a folder for the encoder that scored, or for a card that says which one did.

    Raises:
        DataError: no pair is left, or a file that the section names is not there.
        ModelError: the encoder cannot be used. RecipeError: the bootstrap section.
    """
    pairs = Dataset(raw, "pairs")
    if not len(pairs):
        raise DataError(f"{raw}: holds no pairs; check the source of ingest")
    _require_files(section)
    training = score.bootstrap_section(section.bootstrap, section.seed) if section.score.model == "bootstrap" else None

    if section.ray == "job":
        written = {"curated": curated, "ledger": ledger, "funnel": funnel, "scorer": scorer}
        on_ray("curate", asdict(replace(section, ray=None)), {"raw": raw}, written, section.processes)
        return Dataset(curated, "pairs")

    scratch = _scratch(curated, pairs, section)
    engine = Engine(kind=section.engine, processes=section.processes, address=section.ray, scratch=scratch)
    laps = StageTimer()
    measured = measure(pairs, section, engine)
    verdicts = Ledger(measured.uids, measured.splits)
    rules.taken_down(verdicts, measured, section)
    rules.pictures(verdicts, measured, section)
    rules.captions(verdicts, measured)
    laps.end("pictures")  # the captions in the same pass
    rules.evaluation(verdicts, measured, section)
    rules.repeats(verdicts, measured, section)
    laps.end("repeats")
    candidates = Candidates(pairs, measured, verdicts, rules.rewritten(verdicts, measured))
    notes = encoder_filters.by_encoder(candidates, scorer, section, training, engine)
    laps.end("score")
    vector_filters.balanced(candidates, section)
    laps.end("diversity")
    notes["captions_cleared"] = sum(not text for row, text in candidates.captions.items() if verdicts.kept[row])
    _require_some(pairs, verdicts)
    written = _write(candidates, curated, ledger, funnel, section, notes)
    laps.write(ledger / "cost.json")
    engine.clear()
    return written


class StageTimer:
    """What each stage of a curation took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def end(self, stage: str) -> None:
        """The stage that began when the one before ended is over."""
        now = time.perf_counter()
        self.seconds[stage], self.last = round(now - self.last, 2), now

    def write(self, path: Path) -> None:
        """Write the seconds as JSON; a file of its own, since no two runs take as long."""
        path.write_text(json.dumps({"seconds": self.seconds}, indent=2) + "\n", encoding="utf-8")


def _require_files(section: CurateConfig) -> None:
    """What the section names must be there before hours of work, not after them."""
    named = {
        "bad_words": section.bad_words,
        "decontaminate": section.decontaminate,
        "exclude": (section.exclude,),
        "clusters.reference": (section.clusters.reference,),
        "balance.entries": (section.balance.entries,),
        "captioner": (section.captioner,),
    }
    for name, paths in named.items():
        for path in filter(None, paths):
            if not Path(path).exists():
                raise DataError(f"curate.{name} {path}: no such file or folder; mend the path, or leave the key out")


def _scratch(curated: Path, pairs: Dataset, section: CurateConfig) -> Path:
    """Where a killed curation leaves what it finished: beside the output, or beside the runs of this machine."""
    run = os.environ.get("VLMFLOW_RUN")  # there a step's own folder is emptied before the step runs again
    return (Path(run) if run else curated).parent / ".shards" / key(pairs=pairs.hash, section=section.outcome)


def _require_some(pairs: Dataset, verdicts: Ledger) -> None:
    if not verdicts.kept.any():
        dropped = verdicts.dropped
        worst = max(dropped, key=lambda rule: dropped[rule])
        first = verdicts.detail[np.flatnonzero(verdicts.rule == worst)[0]]
        raise DataError(
            f"{pairs.path}: no pair of {len(verdicts)} is left; rule {worst!r} dropped {dropped[worst]}"
            f"{f' (first: {first})' if first else ''}; loosen it in section curate, or check the columns of ingest"
        )


def _write(
    candidates: Candidates,
    curated: Path,
    ledger: Path,
    funnel: Path,
    section: CurateConfig,
    notes: dict[str, Any],
) -> Dataset:
    verdicts = candidates.ledger
    summary = verdicts.write(ledger, notes)
    gallery, kept = chart.Gallery(verdicts, section.seed), verdicts.kept

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(candidates.pairs.rows()):
            gallery.see(number, row)
            if kept[number]:
                yield {**row, "caption": candidates.captions.get(number, row["caption"])}

    written = dataset.write(
        curated,
        "pairs",
        rows(),
        step="curate",
        recipe=asdict(section),
        parents=[candidates.pairs.hash],
        notes=summary,
        revision=candidates.pairs.card.revision,
    )
    chart.write(funnel, verdicts, gallery, summary)
    dropped = ", ".join(f"{count:,} by {rule}" for rule, count in summary["dropped"].items() if count)
    logger.info("kept %d of %d pairs; dropped %s", summary["kept"], summary["rows_in"], dropped or "none")
    return written
