"""Selection: what an encoder says of the training pairs that the rules let through."""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.curate import score
from components.curate.candidates import Candidates
from components.curate.config import CurateConfig
from components.curate.encoder import Encoder
from components.curate.engine import Engine
from components.curate.recaptioning import propose
from components.curate.vector_filters import by_vectors
from vlmflow.artifacts import dataset
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.runtime.code_hash import code_hash
from vlmflow.runtime.step_cache import key

if TYPE_CHECKING:
    from vlmflow.training.pretraining.config import PretrainConfig

logger = logging.getLogger(__name__)


def by_encoder(
    candidates: Candidates, scorer: Path, section: CurateConfig, training: "PretrainConfig | None", engine: Engine
) -> dict[str, Any]:
    """Every rule that asks the encoder; return what the card says of it. Pairs without a caption have nothing to score.

    Args:
        scorer: where the encoder, or its card, goes. training: the bootstrap's section, or None.
    """
    ledger, wanted = candidates.ledger, candidates.wanted
    if section.score.model == "none" or not wanted.any():
        score.card(scorer, family="none")
        return {}
    encoder = _encoder(candidates, wanted, scorer, section.score, training, engine)
    ledger.score[wanted] = encoder.scores(candidates.pairs, wanted, candidates.captions, engine)
    unseen = wanted & np.isnan(ledger.score)
    ledger.note(ledger.drop("undecodable", unseen).tolist(), ["cannot be decoded in full"] * int(unseen.sum()))
    wanted &= ~unseen
    if not wanted.any():
        return {}
    notes: dict[str, Any] = {}
    if section.captioner:
        notes["captions_proposed"] = propose(candidates, wanted, encoder, section.captioner, section)
    rows = np.flatnonzero(wanted)
    separation = _by_score(candidates, rows, section.score)
    notes["scorer"] = {
        "model": section.score.model, "hash": encoder.hash, "pairs": len(rows), "separation": separation
    }  # fmt: skip
    if section.agreement.classes or section.clusters.wanted:
        by_vectors(candidates, encoder, section, engine)
    return notes


def _encoder(
    candidates: Candidates,
    wanted: np.ndarray,
    scorer: Path,
    section: score.ScoreConfig,
    training: "PretrainConfig | None",
    engine: Engine,
) -> Encoder:
    """The encoder that the recipe names, or one bootstrapped on the `wanted` rows."""
    if training is None:
        model = score.resolve(section.model)
        score.card(scorer, family="external", model=section.model, hash=Checkpoint(model).hash)
    else:
        model = scorer
        _bootstrap(candidates, wanted, scorer, training, engine)
    return Encoder(
        model=str(model),
        hash=Checkpoint(model).hash,
        batch_size=section.batch_size,
        mask_text=section.mask_text,
        cache=section.cache,
    )


def _bootstrap(
    candidates: Candidates, wanted: np.ndarray, scorer: Path, training: "PretrainConfig", engine: Engine
) -> None:
    """Train the encoder on as many of the `wanted` rows as its budget can show once, the first by uid.

    A uid is a hash, so those are a random choice that depends neither on the rows' order nor on the shards.
    """
    chosen = np.zeros(len(wanted), dtype=bool)
    order = candidates.measured.priority
    chosen[order[wanted[order]][: training.training.max_steps * training.training.batch_size]] = True
    name = key(rows=np.packbits(chosen).tobytes().hex(), training=training.plain(), code=code_hash(score.__name__))
    trained, beside = engine.scratch / name, engine.scratch / f"{name}.partial"
    if not trained.exists():
        shutil.rmtree(beside, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=scorer.parent) as folder:
            rows = sorted(candidates.rows(chosen), key=lambda row: row["uid"])
            dataset.write(folder, "pairs", rows, step="curate", parents=[candidates.pairs.hash])
            del rows
            score.bootstrap(Path(folder), beside, training)
        beside.rename(trained)
    shutil.copytree(trained, scorer, dirs_exist_ok=True)
    # Its rows lie nowhere by themselves: to lineage it has learned from the data that they were chosen of.
    score.card(scorer, **Checkpoint(trained).card | {"step": "curate", "datasets": [candidates.pairs.hash]})


def _by_score(candidates: Candidates, rows: np.ndarray, section: score.ScoreConfig) -> float:
    """Rule clip_score; return how well the scores fall into two groups."""
    ledger = candidates.ledger
    keep, threshold = score.choose(ledger.score[rows], [ledger.uids[row] for row in rows], section)
    failed = np.zeros(len(ledger), dtype=bool)
    failed[rows] = ~keep
    ledger.drop("clip_score", failed, ledger.score, threshold)
    ledger.thresholds["clip_score"] = threshold
    separation = score.otsu(ledger.score[rows])[1]
    if section.fraction is None and section.threshold == "otsu" and separation < score.TWO_GROUPS:
        logger.warning(
            "the scores do not fall into two groups (separation %.2f), so otsu may drop good pairs; set score.fraction",
            separation,
        )
    return separation
