"""The rules that need no model, in the ledger's order."""

import numpy as np

from components.curate import duplicates
from components.curate.ledger import Ledger
from components.curate.measurement import Measured
from components.curate.texts import Junk


def pictures(
    ledger: Ledger,
    measured: Measured,
    *,
    min_side: int,
    max_aspect: float | None,
    min_contrast: float,
    min_correlation: float,
) -> None:
    """Drop pictures that cannot be decoded, are too small, too long, blank, or white noise."""
    undecodable = ledger.drop("undecodable", np.array([bool(reason) for reason in measured.reasons], dtype=bool))
    ledger.detail[undecodable] = [measured.reasons[row] for row in undecodable]
    ledger.drop("too_small", measured.short_side < min_side, measured.short_side, min_side)
    if max_aspect is not None:
        ledger.drop("aspect", measured.aspect > max_aspect, measured.aspect, max_aspect)
    ledger.drop("blank", measured.contrast < min_contrast, measured.contrast, min_contrast)
    ledger.drop("noise", measured.correlation < min_correlation, measured.correlation, min_correlation)


def captions(ledger: Ledger, measured: Measured) -> None:
    """Drop pairs whose caption is of no use, unless the picture's regions, lines or label are."""
    junk = measured.junk
    failed = np.array([finding is not None for finding in junk], dtype=bool) & ~measured.annotated
    value = np.array([finding.value if finding else np.nan for finding in junk])
    threshold = np.array([finding.threshold if finding else np.nan for finding in junk])
    rows = ledger.drop("junk_text", failed, value, threshold)
    ledger.detail[rows] = [finding.reason for finding in _only(junk, rows)]


def cleared(ledger: Ledger, measured: Measured) -> np.ndarray:
    """(N,) bool: kept for its annotations although its caption is of no use, so that nothing may learn the caption."""
    useless = np.array([finding is not None for finding in measured.junk], dtype=bool) & ledger.kept
    rows = np.flatnonzero(useless)
    ledger.detail[rows] = [
        "no caption" if finding.reason == "empty" else f"caption cleared: {finding.reason}"
        for finding in _only(measured.junk, rows)
    ]
    return useless


def repeats(ledger: Ledger, measured: Measured, *, bits: int, levels: float | None) -> None:
    """Drop pairs that stand there twice, near copies of a picture, and training pictures of the test set.

    Of equals the first by uid is kept. A near copy is one within `bits` of dHash and `levels` of brightness
    in every cell; None looks for exact ones only.
    """
    order = measured.priority[ledger.kept[measured.priority]]
    first = _spread(len(ledger), order, duplicates.exact([measured.pairs[row] for row in order]))
    ledger.drop("exact_duplicate", first >= 0, partner=first)
    if levels is None:
        return
    order = order[ledger.kept[order]]
    found = duplicates.Pictures(
        measured.hashes[order], measured.cells[order], measured.groups[order], measured.test[order]
    )
    leaks, copies = duplicates.find(found, bits, levels)
    for rule, partners in (("in_test_set", leaks), ("near_duplicate", copies)):
        partner = _spread(len(ledger), order, partners)
        apart = np.full(len(ledger), np.nan)
        rows = np.flatnonzero(partner >= 0)
        apart[rows] = duplicates.difference(measured.cells, rows, partner[rows])
        ledger.drop(rule, partner >= 0, apart, levels, partner)


def _only(junk: list[Junk | None], rows: np.ndarray) -> list[Junk]:
    return [finding for row in rows if (finding := junk[row]) is not None]


def _spread(count: int, order: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Partners found among the rows of `order`, as partners of all rows; -1 is none."""
    partner = np.full(count, -1)
    rows = found >= 0
    partner[order[rows]] = order[found[rows]]
    return partner
