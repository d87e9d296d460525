"""Curation: select the pairs that are worth training on, and write a verdict for every pair.

This module is the step; read it first. The other modules in the order of use: `features` extracts what the rules need
of every row, in one pass that `engine` distributes; `rules` applies the rules without a model; `encoder_filters` those
that need a dual encoder (`encoder`, `score`, `recaptioning`); `vector_filters` those on image embeddings and balance;
`funnel` writes the page. Search for near duplicates, decontamination and the ledger are in `vlmflow`.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from components.curate import encoder_filters, rules, score, vector_filters
from components.curate import funnel as funnel_page
from components.curate.candidates import Candidates
from components.curate.config import CurateConfig
from components.curate.engine import Engine
from components.curate.features import extract_features
from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.hashing import cache_key
from vlmflow.artifacts.ledger import Ledger
from vlmflow.errors import DataError
from vlmflow.runtime.jobs.rayjob import run_on_ray

logger = logging.getLogger(__name__)


def curate(raw: Path, curated: Path, ledger: Path, funnel: Path, scorer: Path, config: CurateConfig) -> Dataset:
    """Keep the pairs that are worth training on, and write a verdict for every pair.

    1. Extract the features of every image and caption, in one pass.
    2. Drop excluded pairs, unusable images and unusable captions. Of the test split only rows that cannot be scored or
       must not be used are dropped, by `EVERY_SPLIT` of the ledger; other rules only report its rows.
    3. Drop training images that are in an evaluation set or the test split, and duplicates.
    4. Score the remaining training pairs with a dual encoder; drop low scores, and clusters by their embeddings.
    5. Balance the words of the captions.
    6. Write the kept rows, the verdict of every row, and the funnel.

    Args:
        raw: dataset of schema `pairs`. curated: folder for the kept rows, in order and unchanged except for captions:
            an unusable caption of an annotated image becomes "", and the recipe may rewrite others.
        ledger: folder for `ledger.parquet`, `summary.json` and `cost.json`. funnel: an HTML file.
        scorer: folder for the bootstrapped encoder, or for a card that names the encoder.

    Raises:
        DataError: no pair is kept, or a file that the recipe names does not exist.
        ModelError: the encoder cannot be used. RecipeError: the section `bootstrap` is invalid.
    """
    pairs = Dataset(raw, "pairs")
    if not len(pairs):
        raise DataError(f"{raw}: contains no pairs; check the source of ingest")
    _require_named_files(config)
    training = score.load_bootstrap_config(config.bootstrap, config.seed) if config.score.model == "bootstrap" else None
    if config.ray == "job":
        outputs = {"curated": curated, "ledger": ledger, "funnel": funnel, "scorer": scorer}
        run_on_ray("curate", config.model_dump() | {"ray": None}, {"raw": raw}, outputs, config.processes)
        return Dataset(curated, "pairs")

    scratch = _scratch_folder(curated, pairs, config)
    engine = Engine(kind=config.engine, processes=config.processes, address=config.ray, scratch=scratch)
    timer = StageTimer()
    features = extract_features(pairs, config, engine)
    verdicts = Ledger(features.uids, features.splits)

    rules.drop_excluded(verdicts, features, config)
    rules.drop_unusable_images(verdicts, features, config)
    rules.drop_unusable_captions(verdicts, features)
    timer.stop_stage("images")  # includes the captions, which are examined in the same pass

    rules.drop_contaminated(verdicts, features, config)
    rules.drop_duplicates(verdicts, pairs, features, config)
    timer.stop_stage("duplicates")

    candidates = Candidates(pairs, features, verdicts, rules.rewritten_captions(verdicts, features))
    notes = encoder_filters.apply_encoder_filters(candidates, scorer, config, training, engine)
    timer.stop_stage("score")

    vector_filters.apply_balance(candidates, config)
    timer.stop_stage("diversity")

    _require_kept_pairs(pairs, verdicts)
    written = _write_outputs(candidates, curated, ledger, funnel, config, notes)
    timer.write(ledger / "cost.json")
    engine.remove_scratch()
    return written


class StageTimer:
    """The duration of each stage, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def stop_stage(self, stage: str) -> None:
        """Record the time since the previous stage ended."""
        now = time.perf_counter()
        self.seconds[stage], self.last = round(now - self.last, 2), now

    def write(self, path: Path) -> None:
        """Write the seconds as JSON, to a separate file because they differ from run to run."""
        path.write_text(json.dumps({"seconds": self.seconds}, indent=2) + "\n", encoding="utf-8")


def _require_named_files(config: CurateConfig) -> None:
    """Check that the files of the recipe exist before the long work starts."""
    named = {
        "blocklist": config.blocklist,
        "decontaminate": config.decontaminate,
        "exclude": (config.exclude,),
        "clusters.reference": (config.clusters.reference,),
        "balance.entries": (config.balance.entries,),
        "captioner": (config.captioner,),
    }
    for name, paths in named.items():
        for path in filter(None, paths):
            if not Path(path).exists():
                raise DataError(f"curate.{name} {path}: no such file or folder; correct the path or remove the key")


def _scratch_folder(curated: Path, pairs: Dataset, config: CurateConfig) -> Path:
    """Return the folder for finished parts: beside the output, or beside the runs of this machine."""
    run = os.environ.get("VLMFLOW_RUN")  # a run empties the folder of a step before it runs the step again
    return (Path(run) if run else curated).parent / ".shards" / cache_key(pairs=pairs.hash, section=config.outcome)


def _require_kept_pairs(pairs: Dataset, verdicts: Ledger) -> None:
    if not verdicts.kept.any():
        dropped = verdicts.dropped
        worst = max(dropped, key=lambda rule: dropped[rule])
        first = verdicts.detail[np.flatnonzero(verdicts.rule == worst)[0]]
        raise DataError(
            f"{pairs.path}: none of {len(verdicts)} pairs is kept; rule {worst!r} dropped {dropped[worst]}"
            f"{f' (first: {first})' if first else ''}; relax it in section curate, or check the columns of ingest"
        )


def _write_outputs(
    candidates: Candidates,
    curated: Path,
    ledger: Path,
    funnel: Path,
    config: CurateConfig,
    notes: dict[str, Any],
) -> Dataset:
    verdicts = candidates.ledger
    if undecided := int((candidates.features.undecided_languages & verdicts.kept).sum()):
        notes["languages_undecided"] = undecided
    notes["captions_cleared"] = sum(not text for row, text in candidates.captions.items() if verdicts.kept[row])
    summary = verdicts.write(ledger, notes)
    gallery, kept = funnel_page.Gallery(verdicts, config.seed), verdicts.kept

    def rows() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(candidates.pairs.rows()):
            gallery.add_row(number, row)
            if kept[number]:
                yield {**row, "caption": candidates.captions.get(number, row["caption"])}

    written = dataset.write(
        curated,
        "pairs",
        rows(),
        step="curate",
        recipe=config.model_dump(),
        parents=[candidates.pairs.hash],
        notes=summary,
        revision=candidates.pairs.card.revision,
    )
    funnel_page.write_page(funnel, verdicts, gallery, summary)
    for rule, count in summary["held_out_faults"].items():
        logger.warning(
            "%d pairs of the test split fail %s; they are kept, so that the test split stays as it is", count, rule
        )
    dropped = ", ".join(f"{count:,} by {rule}" for rule, count in summary["dropped"].items() if count)
    logger.info("kept %d of %d pairs; dropped %s", summary["kept"], summary["rows_in"], dropped or "none")
    return written
