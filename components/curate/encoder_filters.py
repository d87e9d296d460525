"""Filters that need the dual encoder: image-text scores, recaptioning, and the filters on image embeddings."""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.curate import score
from components.curate.candidates import Candidates
from components.curate.config import CurateConfig, ScoreConfig
from components.curate.encoder import Encoder
from components.curate.engine import Engine
from components.curate.recaptioning import recaption
from components.curate.vector_filters import apply_vector_filters
from vlmflow.artifacts import dataset
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.hashing import cache_key
from vlmflow.runtime.code_hash import code_hash

if TYPE_CHECKING:
    from vlmflow.training.pretraining.config import PretrainConfig

logger = logging.getLogger(__name__)


def apply_encoder_filters(
    candidates: Candidates, scorer: Path, config: CurateConfig, training: "PretrainConfig | None", engine: Engine
) -> dict[str, Any]:
    """Apply the rules that use the encoder, to pairs with a caption; return notes for the dataset's card.

    Args:
        scorer: folder for the bootstrapped encoder, or for a card that names the encoder.
        training: configuration of the bootstrap encoder; None if the recipe names an encoder.
    """
    ledger, selected = candidates.ledger, candidates.eligible
    if config.score.model == "none" or not selected.any():
        score.write_card(scorer, family="none")
        return {}
    encoder = _load_or_train_encoder(candidates, selected, scorer, config.score, training, engine)
    ledger.score[selected] = encoder.score_rows(candidates.pairs, selected, candidates.captions, engine)
    undecodable = selected & np.isnan(ledger.score)
    ledger.add_note(
        ledger.drop("undecodable", undecodable).tolist(), ["cannot be decoded in full"] * int(undecodable.sum())
    )
    selected &= ~undecodable
    if not selected.any():
        return {}
    notes: dict[str, Any] = {}
    if config.captioner:
        notes["captions_proposed"] = recaption(candidates, selected, encoder, config.captioner, config)
    rows = np.flatnonzero(selected)
    separation = _drop_low_scores(candidates, rows, config.score)
    notes["scorer"] = {
        "model": config.score.model, "hash": encoder.hash, "pairs": len(rows), "separation": separation
    }  # fmt: skip
    if config.label_consistency.classes or config.clusters.wanted:
        apply_vector_filters(candidates, encoder, config, engine)
    return notes


def _load_or_train_encoder(
    candidates: Candidates,
    selected: np.ndarray,
    scorer: Path,
    config: ScoreConfig,
    training: "PretrainConfig | None",
    engine: Engine,
) -> Encoder:
    """Load the encoder that the recipe names, or train one on the `selected` rows."""
    if training is None:
        model = score.resolve_model(config.model)
        score.write_card(scorer, family="external", model=config.model, hash=Checkpoint(model).hash)
    else:
        model = scorer
        _bootstrap_encoder(candidates, selected, scorer, training, engine)
    return Encoder(
        model=str(model),
        hash=Checkpoint(model).hash,
        batch_size=config.batch_size,
        mask_text=config.mask_text,
        cache=config.cache,
    )


def _bootstrap_encoder(
    candidates: Candidates, selected: np.ndarray, scorer: Path, training: "PretrainConfig", engine: Engine
) -> None:
    """Train the encoder for up to one epoch: on as many of the `selected` rows, the first by uid, as it has samples.

    Uids are hashes, so this is a random sample that depends neither on the order of the rows nor on the shards.
    """
    chosen = np.zeros(len(selected), dtype=bool)
    order = candidates.features.uid_order
    chosen[order[selected[order]][: training.training.max_steps * training.training.batch_size]] = True
    name = cache_key(
        rows=np.packbits(chosen).tobytes().hex(), training=training.model_dump(), code=code_hash(score.__name__)
    )
    trained, partial = engine.scratch / name, engine.scratch / f"{name}.partial"
    if not trained.exists():
        shutil.rmtree(partial, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=scorer.parent) as folder:
            rows = sorted(candidates.rows(chosen), key=lambda row: row["uid"])
            dataset.write(folder, "pairs", rows, step="curate", parents=[candidates.pairs.hash])
            del rows
            score.train_encoder(Path(folder), partial, training)
        partial.rename(trained)
    shutil.copytree(trained, scorer, dirs_exist_ok=True)
    # The sampled rows are not kept as a dataset. For lineage the encoder was trained on the raw dataset.
    score.write_card(scorer, **Checkpoint(trained).card | {"step": "curate", "datasets": [candidates.pairs.hash]})


def _drop_low_scores(candidates: Candidates, rows: np.ndarray, config: ScoreConfig) -> float:
    """Apply rule `clip_score`, and return the separation of the scores in two groups."""
    ledger = candidates.ledger
    keep, threshold = score.select_by_score(ledger.score[rows], [ledger.uids[row] for row in rows], config)
    failed = np.zeros(len(ledger), dtype=bool)
    failed[rows] = ~keep
    ledger.drop("clip_score", failed, ledger.score, threshold)
    ledger.thresholds["clip_score"] = threshold
    separation = score.otsu_threshold(ledger.score[rows])[1]
    if config.fraction is None and config.threshold == "otsu" and separation < score.MIN_SEPARATION:
        logger.warning(
            "the scores do not form two groups (separation %.2f), so otsu may drop good pairs; set score.fraction",
            separation,
        )
    return separation
