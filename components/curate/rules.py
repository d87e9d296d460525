"""The rules that need no model, in the ledger's order."""

from collections.abc import Iterable

import numpy as np

from components.curate.caption_rules import Finding
from components.curate.config import CurateConfig
from components.curate.features import Measured
from vlmflow.artifacts import exclusion_list
from vlmflow.artifacts.ledger import TAKEDOWN, Ledger
from vlmflow.images import decontamination, near_duplicates

TEXT_RULES = ("junk_text", "too_long", "language", "complexity", "bad_words", "personal_data")


def taken_down(ledger: Ledger, measured: Measured, section: CurateConfig) -> None:
    """Drop what the exclusion list names, by the pair or by the picture, from every split."""
    if section.exclude is None:
        return
    listed = exclusion_list.read(section.exclude)
    rows = zip(measured.uids, measured.digests.tolist(), strict=True)
    ledger.drop(TAKEDOWN, np.array([uid in listed or digest.hex() in listed for uid, digest in rows], dtype=bool))


def pictures(ledger: Ledger, measured: Measured, section: CurateConfig) -> None:
    """Drop pictures that cannot be decoded, show too little, or show it too badly."""
    undecodable = ledger.drop("undecodable", np.array([bool(reason) for reason in measured.reasons], dtype=bool))
    ledger.detail[undecodable] = [measured.reasons[row] for row in undecodable]
    ledger.drop("too_small", measured.short_side < section.min_side, measured.short_side, section.min_side)
    if section.max_aspect is not None:
        ledger.drop("aspect", measured.aspect > section.max_aspect, measured.aspect, section.max_aspect)
    for rule, value, least in (
        ("blank", measured.contrast, section.min_contrast),
        ("noise", measured.correlation, section.min_correlation),
        ("blurred", measured.sharpness, section.min_sharpness),
        ("low_entropy", measured.entropy, section.min_entropy),
        ("low_colour", measured.colour, section.min_colour),
    ):
        ledger.drop(rule, value < least, value, least)


def captions(ledger: Ledger, measured: Measured) -> None:
    """Drop pairs whose caption is of no use, unless the picture's regions, lines or label are."""
    findings = measured.findings
    value = np.array([finding.value if finding else np.nan for finding in findings])
    threshold = np.array([finding.threshold if finding else np.nan for finding in findings])
    named = np.array([finding.rule if finding else "" for finding in findings], dtype=object)
    for rule in TEXT_RULES:
        rows = ledger.drop(rule, (named == rule) & ~measured.annotated, value, threshold)
        ledger.detail[rows] = [finding.reason for finding in _only(findings, rows)]


def rewritten(ledger: Ledger, measured: Measured) -> dict[int, str]:
    """The captions of kept rows that are not kept as they came, by row; the ledger says why.

    "" for a pair kept for its annotations although its caption is of no use, so that nothing may learn the
    caption; else the caption without personal data.
    """
    kept = ledger.kept
    useless = [row for row in np.flatnonzero(kept).tolist() if measured.findings[row] is not None]
    ledger.note(
        useless,
        (
            "no caption" if finding.reason == "empty" else f"caption cleared: {finding.reason}"
            for finding in _only(measured.findings, useless)
        ),
    )
    held = [row for row in np.flatnonzero(kept).tolist() if measured.personal[row]]
    ledger.note(
        held,
        (
            " and ".join(measured.personal[row]) + (" removed" if row in measured.rewritten else " in the caption")
            for row in held
        ),
    )
    texts = {row: text for row, text in measured.rewritten.items() if kept[row]}
    return texts | dict.fromkeys(useless, "")


def evaluation(ledger: Ledger, measured: Measured, section: CurateConfig) -> None:
    """Drop training rows whose picture an evaluation set holds."""
    if not section.decontaminate:
        return
    held = decontamination.read(section.decontaminate)
    rows = np.flatnonzero(ledger.kept & ~measured.test)
    levels = section.near_levels or 0.0
    places, apart = decontamination.match(measured.looked(rows), held, section.near_bits, levels)
    found, away = np.full(len(ledger), -1), np.full(len(ledger), np.nan)
    found[rows], away[rows] = places, apart
    found[[row for row in rows[places < 0] if measured.uids[row] in held.uids]] = len(held.names)
    dropped = ledger.drop("in_evaluation_set", found >= 0, away, levels)
    ledger.detail[dropped] = [[*held.names, "the pair itself"][found[row]] for row in dropped]


def repeats(ledger: Ledger, measured: Measured, section: CurateConfig) -> None:
    """Drop pairs that stand there twice, near copies of a picture, training pictures of the test set, old captions.

    Of equals the first by uid is kept.
    """
    _same_pictures(ledger, measured, section.near_bits, section.near_levels)
    if section.per_caption is not None:
        _same_captions(ledger, measured, section.per_caption)


def _same_pictures(ledger: Ledger, measured: Measured, bits: int, levels: float | None) -> None:
    """A near copy is one within `bits` of dHash and `levels` of any cell; None looks for exact ones only."""
    order = measured.priority[ledger.kept[measured.priority]]
    first = _spread(len(ledger), order, near_duplicates.exact([measured.pairs[row] for row in order]))
    ledger.drop("exact_duplicate", first >= 0, partner=first)
    if levels is None:
        return
    order = order[ledger.kept[order]]
    leaks, copies = near_duplicates.find(measured.looked(order), bits, levels)
    for rule, partners in (("in_test_set", leaks), ("near_duplicate", copies)):
        partner = _spread(len(ledger), order, partners)
        apart = np.full(len(ledger), np.nan)
        rows = np.flatnonzero(partner >= 0)
        apart[rows] = near_duplicates.difference(measured.cells, rows, partner[rows])
        ledger.drop(rule, partner >= 0, apart, levels, partner)


def _same_captions(ledger: Ledger, measured: Measured, most: int) -> None:
    """Of the training pairs of one caption, as `captions.normalised` reads it, keep `most`, the first by uid."""
    place, first = np.zeros(len(ledger)), np.full(len(ledger), -1)
    members: dict[bytes, list[int]] = {}
    for row in measured.priority[(ledger.kept & ~measured.test & ~measured.annotated)[measured.priority]].tolist():
        same = members.setdefault(measured.captions[row], [])
        same.append(row)
        place[row], first[row] = len(same), same[0]
    ledger.drop("caption_duplicate", place > most, place, most, first)


def _only(findings: list[Finding | None], rows: Iterable[int]) -> list[Finding]:
    return [finding for row in rows if (finding := findings[row]) is not None]


def _spread(count: int, order: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Partners found among the rows of `order`, as partners of all rows; -1 is none."""
    partner = np.full(count, -1)
    rows = found >= 0
    partner[order[rows]] = order[found[rows]]
    return partner
