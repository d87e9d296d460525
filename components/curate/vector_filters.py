"""Filters on image embeddings and on the balance of the captions' words, applied after the score filter."""

from collections.abc import Iterator

import numpy as np

from components.curate import balance, clusters, label_consistency
from components.curate.candidates import Candidates
from components.curate.config import CurateConfig, LabelConsistencyConfig
from components.curate.encoder import Encoder
from components.curate.engine import Engine
from components.curate.phrases import load_phrases
from vlmflow.artifacts.ledger import Ledger
from vlmflow.images import decontamination, image_statistics


def apply_vector_filters(candidates: Candidates, encoder: Encoder, config: CurateConfig, engine: Engine) -> None:
    """Apply the rules that use image embeddings, in the order of the uids."""
    ledger, selected = candidates.ledger, candidates.eligible
    if not selected.any():
        return
    embeddings = encoder.embed_rows(candidates.pairs, selected, engine)
    index_of_row = np.full(len(ledger), -1)
    index_of_row[selected] = np.arange(selected.sum())
    order = candidates.features.uid_order[selected[candidates.features.uid_order]]
    vectors = embeddings[index_of_row[order]]
    if config.label_consistency.classes:
        _drop_label_mismatches(candidates, encoder, order, vectors, config.label_consistency)
        kept = ledger.kept[order]
        order, vectors = order[kept], vectors[kept]
    if config.clusters.wanted and len(order):
        _apply_cluster_filters(candidates, encoder, order, vectors, config)


def _drop_label_mismatches(
    candidates: Candidates,
    encoder: Encoder,
    order: np.ndarray,
    vectors: np.ndarray,
    config: LabelConsistencyConfig,
) -> None:
    """Apply rule `label_mismatch` to the rows `order`, (M,), with embeddings (M, D)."""
    from vlmflow.inference.embedding import class_vectors

    ledger = candidates.ledger
    similarities = np.zeros((len(ledger), len(config.classes)), dtype=np.float32)
    similarities[order] = vectors @ class_vectors(encoder.loaded, config.classes).T
    rank = np.ones(len(ledger))
    mentioned: dict[int, list[int]] = {}
    selected = np.zeros(len(ledger), dtype=bool)
    selected[order] = True
    for row, pair in zip(np.flatnonzero(selected).tolist(), candidates.rows(selected, ["caption"]), strict=True):
        if classes := label_consistency.mentioned_classes(pair["caption"], config.classes):
            mentioned[row], rank[row] = classes, label_consistency.best_rank(similarities[row], classes)
    for row in ledger.drop("label_mismatch", rank > config.top, rank, config.top).tolist():
        caption_class, image_class = (config.classes[i] for i in (mentioned[row][0], int(similarities[row].argmax())))
        ledger.add_note([row], [f"caption names {caption_class}, image is most similar to {image_class}"])


def _apply_cluster_filters(
    candidates: Candidates, encoder: Encoder, order: np.ndarray, vectors: np.ndarray, config: CurateConfig
) -> None:
    """Apply the cluster rules to the rows `order`, (M,), with embeddings (M, D)."""
    ledger, options = candidates.ledger, config.clusters
    centres = clusters.centroids(vectors, options.count, config.seed)
    assigned, to_centroid = clusters.nearest_centroids(vectors, centres)
    value, partner = np.full(len(ledger), np.nan), np.full(len(ledger), -1)
    if options.epsilon is not None:
        earlier, value[order] = clusters.semantic_duplicates(vectors, assigned, to_centroid)
        partner[order] = np.where(earlier >= 0, order[earlier], -1)
        threshold = 1 - options.epsilon
        ledger.drop("semantic_duplicate", value > threshold, value, threshold, partner)
    if options.reference is not None:
        reference = clusters.nearest_centroids(_embed_reference(encoder, options.reference), centres)[0]
        value[:] = 1
        value[order] = np.bincount(reference, minlength=len(centres))[assigned]
        _note_clusters(ledger, ledger.drop("outside_reference", value < 1, value, 1), order, assigned)
    if options.per_cluster is not None:
        kept = ledger.kept[order]
        draws = balance.uniform_draws([ledger.uids[row] for row in order[kept]], config.seed)
        value[:] = 0
        value[order[kept]] = clusters.rank_in_cluster(assigned[kept], draws)
        rows = ledger.drop("crowded_cluster", value > options.per_cluster, value, options.per_cluster)
        _note_clusters(ledger, rows, order, assigned)


def _note_clusters(ledger: Ledger, rows: np.ndarray, order: np.ndarray, assigned: np.ndarray) -> None:
    """Note in the ledger which cluster each of `rows` is in."""
    cluster = dict(zip(order.tolist(), assigned.tolist(), strict=True))
    ledger.add_note(rows, (f"cluster {cluster[row]}" for row in rows.tolist()))


def _embed_reference(encoder: Encoder, path: str) -> np.ndarray:
    """Return the embeddings (R, D) of the reference images that can be decoded."""

    def readable() -> Iterator[bytes]:
        with image_statistics.ignore_pillow_warnings():
            yield from (
                image
                for _, _, image in decontamination.iter_evaluation_images(path)
                if not image_statistics.read_thumbnail(image).reason
            )

    return encoder.embed_images(readable())


def apply_balance(candidates: Candidates, config: CurateConfig) -> None:
    """Apply rule `balancing` to the training pairs that are still kept and have a caption."""
    options, ledger, selected = config.balance, candidates.ledger, candidates.eligible
    if options.limit is None or not selected.any():
        return
    entries = load_phrases(options.entries, "balance.entries") if options.entries else None
    rows = np.flatnonzero(selected)
    matched = [balance.match_entries(row["caption"], entries) for row in candidates.rows(selected, ["caption"])]
    probability, draw = np.ones(len(ledger)), np.zeros(len(ledger))
    probability[rows] = balance.keep_probabilities(matched, options.limit)
    draw[rows] = balance.uniform_draws([ledger.uids[row] for row in rows], config.seed)
    dropped = ledger.drop("balancing", probability <= draw, probability, draw)
    unmatched = {row for row, entries in zip(rows.tolist(), matched, strict=True) if not entries}
    ledger.add_note(dropped, ("matches no entry" if row in unmatched else "" for row in dropped.tolist()))
