"""Choice among good pairs: classes that agree, no meaning twice, no subject too often."""

from collections.abc import Iterator

import numpy as np

from components.curate import balance, clusters, label_consistency
from components.curate.candidates import Candidates
from components.curate.config import CurateConfig
from components.curate.encoder import Encoder
from components.curate.engine import Engine
from vlmflow.images import decontamination, image_statistics


def by_vectors(candidates: Candidates, encoder: Encoder, section: CurateConfig, engine: Engine) -> None:
    """The rules that look at where the encoder puts the pictures, in the order of uids."""
    ledger, wanted = candidates.ledger, candidates.wanted
    if not wanted.any():
        return
    found = encoder.places(candidates.pairs, wanted, engine)
    places = np.full(len(ledger), -1)
    places[wanted] = np.arange(wanted.sum())
    order = candidates.measured.priority[wanted[candidates.measured.priority]]
    vectors = found[places[order]]
    if section.agreement.classes:
        _by_classes(candidates, encoder, order, vectors, section.agreement)
        left = ledger.kept[order]
        order, vectors = order[left], vectors[left]
    if section.clusters.wanted and len(order):
        _by_clusters(candidates, encoder, order, vectors, section)


def _by_classes(
    candidates: Candidates,
    encoder: Encoder,
    order: np.ndarray,
    vectors: np.ndarray,
    section: label_consistency.LabelConsistencyConfig,
) -> None:
    """Rule disagreement."""
    from vlmflow.inference.loading import class_vectors

    similarities = np.zeros((len(candidates.ledger), len(section.classes)), dtype=np.float32)
    similarities[order] = vectors @ class_vectors(encoder.loaded, section.classes).T
    rank = np.ones(len(candidates.ledger))
    named: dict[int, list[int]] = {}
    wanted = np.zeros(len(rank), dtype=bool)
    wanted[order] = True
    for row, pair in zip(np.flatnonzero(wanted).tolist(), candidates.rows(wanted, ["caption"]), strict=True):
        if mentioned := label_consistency.named(pair["caption"], section.classes):
            named[row], rank[row] = mentioned, label_consistency.rank(similarities[row], mentioned)
    for row in candidates.ledger.drop("disagreement", rank > section.top, rank, section.top).tolist():
        said, seen = (section.classes[place] for place in (named[row][0], int(similarities[row].argmax())))
        candidates.ledger.note([row], [f"says {said}, looks like {seen}"])


def _by_clusters(
    candidates: Candidates, encoder: Encoder, order: np.ndarray, vectors: np.ndarray, section: CurateConfig
) -> None:
    """Rules semantic_duplicate, off_reference and crowded_cluster, for the rows `order` with their vectors."""
    ledger, asked = candidates.ledger, section.clusters
    centres = clusters.centroids(vectors, asked.count, section.seed)
    assigned, close = clusters.nearest(vectors, centres)
    value, partner = np.full(len(ledger), np.nan), np.full(len(ledger), -1)
    if asked.epsilon is not None:
        earlier, value[order] = clusters.repeats(vectors, assigned, close)
        partner[order] = np.where(earlier >= 0, order[earlier], -1)
        least = 1 - asked.epsilon
        ledger.drop("semantic_duplicate", value > least, value, least, partner)
    if asked.reference is not None:
        votes = np.bincount(clusters.nearest(_reference(encoder, asked.reference), centres)[0], minlength=len(centres))
        value[:] = 1
        value[order] = votes[assigned]
        rows = ledger.drop("off_reference", value < 1, value, 1)
        ledger.note(rows, (f"cluster {assigned[place]}" for place in _places(order, rows)))
    if asked.per_cluster is not None:
        left = ledger.kept[order]
        draws = balance.draws([ledger.uids[row] for row in order[left]], section.seed)
        value[:] = 0
        value[order[left]] = clusters.ranks(assigned[left], draws)
        rows = ledger.drop("crowded_cluster", value > asked.per_cluster, value, asked.per_cluster)
        ledger.note(rows, (f"cluster {assigned[place]}" for place in _places(order, rows)))


def _places(order: np.ndarray, rows: np.ndarray) -> list[int]:
    """Where each of `rows` stands in `order`."""
    place = {row: number for number, row in enumerate(order.tolist())}
    return [place[row] for row in rows.tolist()]


def _reference(encoder: Encoder, path: str) -> np.ndarray:
    def readable() -> Iterator[bytes]:
        with image_statistics.quiet():
            yield from (
                image for _, _, image in decontamination.content(path) if not image_statistics.look(image).reason
            )

    return encoder.vectors(readable())


def balanced(candidates: Candidates, section: CurateConfig) -> None:
    """Rule unbalanced, for the training pairs with a caption that are left."""
    asked, ledger, wanted = section.balance, candidates.ledger, candidates.wanted
    if asked.limit is None or not wanted.any():
        return
    entries = balance.read(asked.entries) if asked.entries else None
    rows = np.flatnonzero(wanted)
    matched = [balance.matches(row["caption"], entries) for row in candidates.rows(wanted, ["caption"])]
    probability, drawn = np.ones(len(ledger)), np.zeros(len(ledger))
    probability[rows] = balance.probabilities(matched, asked.limit)
    drawn[rows] = balance.draws([ledger.uids[row] for row in rows], section.seed)
    dropped = ledger.drop("unbalanced", probability <= drawn, probability, drawn)
    bare = {row for row, entries in zip(rows.tolist(), matched, strict=True) if not entries}
    ledger.note(dropped, ("matches no entry" if row in bare else "" for row in dropped.tolist()))
