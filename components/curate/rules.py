"""The rules that need no model, in the order of the ledger."""

from collections.abc import Iterable

import numpy as np

from components.curate.caption_rules import CaptionFinding
from components.curate.config import CurateConfig
from components.curate.features import PairFeatures
from vlmflow.artifacts import exclusion_list
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.ledger import EVERY_SPLIT, TAKEDOWN, Ledger
from vlmflow.images import altered_copies, decontamination, near_duplicates
from vlmflow.images.decoding import pixel_digest

CAPTION_RULES = ("junk_text", "caption_too_long", "language", "low_complexity", "blocklist", "pii")


def drop_excluded(ledger: Ledger, features: PairFeatures, config: CurateConfig) -> None:
    """Drop rows whose pair or image is on the exclusion list, from every split."""
    if config.exclude is None:
        return
    excluded = exclusion_list.read(config.exclude)
    rows = zip(features.uids, features.image_uids.tolist(), strict=True)
    failed = np.array([uid in excluded or image_uid.hex() in excluded for uid, image_uid in rows], dtype=bool)
    ledger.drop(TAKEDOWN, failed)


def drop_unusable_images(ledger: Ledger, features: PairFeatures, config: CurateConfig) -> None:
    """Drop images that cannot be decoded, are too small or elongated, or have too little content."""
    errors = features.decode_errors
    ledger.drop("undecodable", np.array(list(map(bool, errors)), dtype=bool), detail=dict(enumerate(errors)))
    ledger.drop("too_small", features.short_side < config.min_side, features.short_side, config.min_side)
    if config.max_aspect is not None:
        ledger.drop("aspect_ratio", features.aspect > config.max_aspect, features.aspect, config.max_aspect)
    for rule, value, threshold in (
        ("blank", features.contrast, config.min_contrast),
        ("noise", features.correlation, config.min_correlation),
        ("blurred", features.sharpness, config.min_sharpness),
        ("low_entropy", features.entropy, config.min_entropy),
        ("low_colorfulness", features.colorfulness, config.min_colorfulness),
    ):
        ledger.drop(rule, value < threshold, value, threshold)


def drop_unusable_captions(ledger: Ledger, features: PairFeatures) -> None:
    """Drop pairs whose caption fails a rule, unless the image has regions, lines or a label."""
    findings = features.findings
    value = np.array([finding.value if finding else np.nan for finding in findings])
    threshold = np.array([finding.threshold if finding else np.nan for finding in findings])
    failed_rule = np.array([finding.rule if finding else "" for finding in findings], dtype=object)
    reasons = {row: finding.reason for row, finding in enumerate(findings) if finding}
    without_caption = np.array([reasons.get(row) == "empty" for row in range(len(findings))], dtype=bool)
    for rule in CAPTION_RULES:
        # A held-out row is only reported, with annotations too; annotations without any caption are no fault.
        examined = ~features.annotated | (ledger.held_out & (rule not in EVERY_SPLIT) & ~without_caption)
        ledger.drop(rule, (failed_rule == rule) & examined, value, threshold, detail=reasons)


def rewritten_captions(ledger: Ledger, features: PairFeatures) -> dict[int, str]:
    """Return the rewritten captions of kept rows, by row, and note the reasons in the ledger.

    The caption of an annotated training image that fails a rule becomes "", so that no model learns it. Captions of
    both splits are rewritten to remove personal data.
    """
    kept = np.flatnonzero(ledger.kept).tolist()
    undecided = [row for row in kept if features.undecided_languages[row]]
    ledger.add_note(undecided, ["language undecided"] * len(undecided))
    findings = features.findings
    cleared = [
        row for row in kept if (found := findings[row]) and (found.rule in EVERY_SPLIT or not ledger.held_out[row])
    ]
    ledger.add_note(
        cleared,
        (
            "no caption" if finding.reason == "empty" else f"caption cleared: {finding.reason}"
            for finding in _findings_of(findings, cleared)
        ),
    )
    with_pii = [row for row in kept if features.pii[row]]
    ledger.add_note(
        with_pii,
        (
            " and ".join(features.pii[row]) + (" removed" if row in features.rewritten else " in the caption")
            for row in with_pii
        ),
    )
    redacted = {row: features.rewritten[row] for row in kept if row in features.rewritten}
    return redacted | dict.fromkeys(cleared, "")


def drop_contaminated(ledger: Ledger, features: PairFeatures, config: CurateConfig) -> None:
    """Drop training rows whose image or pair is in an evaluation set."""
    if not config.decontaminate:
        return
    evaluation = decontamination.load_evaluation_images(config.decontaminate)
    rows = np.flatnonzero(ledger.kept & ~features.is_test)
    max_difference = config.max_cell_difference
    if max_difference is None:  # only within the dataset
        max_difference = near_duplicates.MAX_CELL_DIFFERENCE
    matches, differences = decontamination.match_images(
        features.signatures(rows), evaluation, config.phash_distance, max_difference
    )
    match, difference = np.full(len(ledger), -1), np.full(len(ledger), np.nan)
    match[rows], difference[rows] = matches, differences
    match[[row for row in rows[matches < 0] if features.uids[row] in evaluation.uids]] = len(evaluation.names)
    names = [*evaluation.names, "the pair itself"]
    detail = {row: names[match[row]] for row in np.flatnonzero(match >= 0).tolist()}
    ledger.drop("in_evaluation_set", match >= 0, difference, max_difference, detail=detail)


def drop_duplicates(ledger: Ledger, pairs: Dataset, features: PairFeatures, config: CurateConfig) -> None:
    """Drop duplicate pairs, near duplicates of images, training images of the test set, and repeated captions.

    Of equal rows the first by uid is kept.
    """
    _drop_exact_duplicates(ledger, features)
    if (config.max_cell_difference or 0) < near_duplicates.MAX_CELL_DIFFERENCE or (
        config.phash_distance < near_duplicates.PHASH_DISTANCE
    ):
        _drop_exact_leaks(ledger, pairs, features)
    if config.altered_copies is not None:
        _drop_altered_copies(ledger, features, config.altered_copies)
    if config.max_cell_difference is not None:
        _drop_near_duplicates(ledger, features, config.phash_distance, config.max_cell_difference)
    if config.max_images_per_caption is not None:
        _drop_repeated_captions(ledger, features, config.max_images_per_caption)


def _drop_exact_duplicates(ledger: Ledger, features: PairFeatures) -> None:
    order = features.uid_order[ledger.kept[features.uid_order]]
    duplicates = near_duplicates.first_occurrences([features.pair_digests[row] for row in order])
    first = _scatter_partners(len(ledger), order, duplicates)
    ledger.drop("exact_duplicate", first >= 0, partner=first)


def _drop_exact_leaks(ledger: Ledger, pairs: Dataset, features: PairFeatures) -> None:
    """Drop training images with the same pixels as one of the test split, whatever counts as a near duplicate."""
    order = features.uid_order[ledger.kept[features.uid_order]]

    def pixel_digests(indices: list[int]) -> dict[int, bytes]:
        index_of_row = dict(zip(order[indices].tolist(), indices, strict=True))
        rows = pairs.rows_at(index_of_row, ["image"])
        found = ((index_of_row[row], pixel_digest(values["image"]["bytes"])) for row, values in rows)
        return {index: digest for index, digest in found if digest is not None}

    leaks = near_duplicates.find_exact_leaks(features.signatures(order), pixel_digests)
    partner = _scatter_partners(len(ledger), order, leaks)
    ledger.drop("in_test_set", partner >= 0, np.zeros(len(ledger)), 0.0, partner)


def _drop_altered_copies(ledger: Ledger, features: PairFeatures, min_similarity: float) -> None:
    """Drop training images that are altered copies of an image of the test split."""
    images = np.concatenate(features.small)
    order = features.uid_order[ledger.kept[features.uid_order]]
    train, test = (order[features.is_test[order] == is_test] for is_test in (False, True))
    found = altered_copies.find_altered_copies(images[train], images[test], min_similarity)
    partner, similarity = np.full(len(ledger), -1), np.full(len(ledger), np.nan)
    partner[train] = np.where(found.of >= 0, test[found.of], -1) if len(test) else -1
    similarity[train] = found.similarity
    ledger.drop("altered_copy", partner >= 0, similarity, min_similarity, partner)


def _drop_near_duplicates(
    ledger: Ledger, features: PairFeatures, phash_distance: int, max_cell_difference: float
) -> None:
    """Drop training images that are near duplicates of images of the test split or of each other."""
    order = features.uid_order[ledger.kept[features.uid_order]]
    leaks, copies = near_duplicates.find_duplicates(features.signatures(order), phash_distance, max_cell_difference)
    for rule, partners in (("in_test_set", leaks), ("near_duplicate", copies)):
        partner = _scatter_partners(len(ledger), order, partners)
        difference = np.full(len(ledger), np.nan)
        rows = np.flatnonzero(partner >= 0)
        difference[rows] = near_duplicates.cell_difference(features.cells, rows, partner[rows])
        ledger.drop(rule, partner >= 0, difference, max_cell_difference, partner)


def _drop_repeated_captions(ledger: Ledger, features: PairFeatures, max_images: int) -> None:
    """Keep `max_images` training pairs of each normalized caption, the first by uid."""
    rank, first = np.zeros(len(ledger)), np.full(len(ledger), -1)
    rows_by_caption: dict[bytes, list[int]] = {}
    for row in features.uid_order[(ledger.kept & ~features.is_test & ~features.annotated)[features.uid_order]].tolist():
        rows = rows_by_caption.setdefault(features.caption_digests[row], [])
        rows.append(row)
        rank[row], first[row] = len(rows), rows[0]
    ledger.drop("caption_duplicate", rank > max_images, rank, max_images, first)


def _findings_of(findings: list[CaptionFinding | None], rows: Iterable[int]) -> list[CaptionFinding]:
    return [finding for row in rows if (finding := findings[row]) is not None]


def _scatter_partners(count: int, order: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """Convert partners, (M,) indices into `order` or -1, to partners of all `count` rows."""
    scattered = np.full(count, -1)
    has_partner = partners >= 0
    scattered[order[has_partner]] = order[partners[has_partner]]
    return scattered
