"""The funnel: an HTML page with the number of pairs that each rule dropped, and examples of them."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vlmflow.artifacts.ledger import MEANING, RULES, TAKEDOWN, Ledger
from vlmflow.images.thumbnails import thumbnail_uri

EXAMPLES = 6  # of each rule
THUMBNAIL = 112  # px


@dataclass
class Example:
    """A dropped pair on the page."""

    caption: str
    note: str
    image: str = ""  # a data URI, or "" if the image cannot be decoded
    partner: str = ""  # data URI of the image that it duplicates


class Gallery:
    """Up to `EXAMPLES` examples of each rule, chosen by `seed` and collected while the rows are written."""

    def __init__(self, ledger: Ledger, seed: int):
        generator = np.random.default_rng(seed)
        self.rules: dict[str, list[Example]] = {}
        self.rows: dict[int, Example] = {}
        self.partners: dict[int, list[Example]] = {}
        for rule in (rule for rule in RULES if rule != TAKEDOWN):  # taken-down images must not be shown
            rows = np.flatnonzero(ledger.rule == rule)
            chosen = np.sort(generator.choice(rows, min(EXAMPLES, len(rows)), replace=False)).tolist()
            for row in chosen:
                self.rows[row] = Example("", _note(ledger, row))
                if ledger.partner[row] >= 0:
                    self.partners.setdefault(int(ledger.partner[row]), []).append(self.rows[row])
            if chosen:
                self.rules[rule] = [self.rows[row] for row in chosen]

    def add_row(self, number: int, row: dict[str, Any]) -> None:
        """Collect row `number`, of schema `pairs`, if the page shows it."""
        if number not in self.rows and number not in self.partners:
            return
        thumbnail = thumbnail_uri((row["image"] or {}).get("bytes"), THUMBNAIL)
        if number in self.rows:
            self.rows[number].caption, self.rows[number].image = row["caption"] or "", thumbnail
        for example in self.partners.get(number, []):
            example.partner = thumbnail


def write_page(path: Path, ledger: Ledger, gallery: Gallery, summary: dict[str, Any]) -> None:
    """Write the page; it loads nothing from the network and has no scripts.

    Args:
        path: the HTML file. summary: the return value of `Ledger.write`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count, kept = summary["rows_in"], summary["kept"]
    cleared, undecided = summary.get("captions_cleared", 0), summary.get("languages_undecided", 0)
    parts = [
        f"<h1>Curation</h1><p class=lead><b>{kept:,}</b> of {count:,} pairs kept ({kept / count:.1%}).</p>",
        _bars(summary),
        f"<p class=note>{cleared:,} kept pairs have no usable caption, but regions, lines or a label.</p>"
        if cleared
        else "",
        _held_out_faults(summary["held_out_faults"]),
        f"<p class=note>{undecided:,} kept captions are too short to recognize their language.</p>"
        if undecided
        else "",
        _histogram(ledger, summary),
        *(_examples(rule, summary["dropped"][rule], examples) for rule, examples in gallery.rules.items()),
    ]
    path.write_text(_PAGE.replace("{body}", "\n".join(filter(None, parts))), encoding="utf-8")


def _held_out_faults(faults: dict[str, int]) -> str:
    """Return a sentence about the pairs of the test split that fail a rule, and are kept."""
    if not faults:
        return ""
    counts = ", ".join(f"{count:,} fail {escape(rule)}" for rule, count in faults.items())
    return f"<p class=note>The test split stays as it is. Of its pairs {counts}.</p>"


def _note(ledger: Ledger, row: int) -> str:
    value, threshold = ledger.value[row], ledger.threshold[row]
    measured = (
        "" if np.isnan(value) else f"{value:.3g}" + ("" if np.isnan(threshold) else f" (threshold {threshold:.3g})")
    )
    detail = "" if ledger.partner[row] >= 0 else str(ledger.detail[row])
    return " · ".join(filter(None, [measured, detail]))


def _bars(summary: dict[str, Any]) -> str:
    """Return a bar chart of the pairs that remain after each rule that dropped any."""
    count, left, height, width = summary["rows_in"], summary["rows_in"], 34, 440
    steps = [("raw pairs", left, 0)]
    for rule, dropped in summary["dropped"].items():
        if dropped:
            left -= dropped
            steps.append((rule, left, dropped))
    lines = []
    for i, (name, rows, dropped) in enumerate(steps):
        y, wide = i * height, width * rows / count
        middle, gone = 150 + width / 2, width * dropped / count
        fill = "#1f5fa8" if i in (0, len(steps) - 1) else "#7fa9d6"
        lines.append(f'<text x="140" y="{y + 19}" text-anchor="end">{escape(name)}</text>')
        for length, colour in ((wide + gone, "#f3d9c4"), (wide, fill)):
            box = f'x="{middle - length / 2:.1f}" y="{y + 2}" width="{length:.1f}"'
            lines.append(f'<rect {box} height="24" rx="3" fill="{colour}"/>')
        share = f'<tspan class="dropped" dx="10">−{dropped:,} ({dropped / count:.1%})</tspan>' if dropped else ""
        lines.append(f'<text x="{165 + width}" y="{y + 19}">{rows:,} ({rows / count:.1%}){share}</text>')
    tall = len(steps) * height
    return f'<svg viewBox="0 0 860 {tall}" width="860" height="{tall}" role="img">{"".join(lines)}</svg>'


def _histogram(ledger: Ledger, summary: dict[str, Any]) -> str:
    scores = ledger.score[~np.isnan(ledger.score)]
    if not len(scores):
        return ""
    threshold, low, high = summary["thresholds"]["clip_score"], float(scores.min()), float(scores.max())
    span = max(high - low, 1e-6)
    edges = np.linspace(low, low + span, 61)
    good, bad = (
        np.histogram(ledger.score[rows & ~np.isnan(ledger.score)], edges)[0] for rows in (ledger.kept, ~ledger.kept)
    )
    top, step, lines = max(int((good + bad).max()), 1), 12, []
    for i, (more, less) in enumerate(zip(good.tolist(), bad.tolist(), strict=True)):
        for rows, base, colour in ((less, 0, "#d98845"), (more, less, "#1f5fa8")):
            tall = 150 * rows / top
            y = 160 - 150 * base / top - tall
            lines.append(
                f'<rect x="{20 + i * step}" y="{y:.1f}" width="{step - 1}" height="{tall:.1f}" fill="{colour}"/>'
            )
    for i in range(0, 61, 10):
        lines.append(f'<text x="{20 + i * step}" y="178" text-anchor="middle">{edges[i]:.2f}</text>')
    x = 20 + 60 * step * float(np.clip((threshold - low) / span, 0, 1))
    lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="162" stroke="#222" stroke-dasharray="4 3"/>')
    lines.append(f'<text x="{x + 6:.1f}" y="14">threshold {threshold:.3f}</text>')
    scorer = summary["scorer"]
    return (
        f"<h2>Scores <small>{len(scores):,} training pairs by {escape(scorer['model'])}, "
        f"checkpoint {scorer['hash'][:12]}; blue is kept, orange is dropped</small></h2>"
        f'<svg viewBox="0 0 860 190" width="860" height="190" role="img">{"".join(lines)}</svg>'
    )


def _examples(rule: str, dropped: int, examples: list[Example]) -> str:
    figures = []
    for example in examples:
        images = "".join(
            f'<img src="{uri}" alt="">' if uri else "<div class=broken>not an image</div>"
            for uri in [example.image, *filter(None, [example.partner])]
        )
        caption = escape(example.caption[:160]) or "<i>no caption</i>"
        figures.append(
            f"<figure>{images}<figcaption>{caption}<span>{escape(example.note)}</span></figcaption></figure>"
        )
    note = "; the image that it duplicates is on the right" if any(example.partner for example in examples) else ""
    heading = f"<h2>{escape(rule)} <small>{dropped:,} dropped: {escape(MEANING[rule])}{note}</small></h2>"
    return f"{heading}<div class=row>{''.join(figures)}</div>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Curation funnel</title><style>
body { font: 14px/1.45 system-ui, sans-serif; color: #1c2430; background: #fff;
  max-width: 900px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 24px; margin: 0; } .lead { font-size: 17px; margin: .3em 0 1.2em; }
h2 { font-size: 16px; margin: 1.8em 0 .6em; border-top: 1px solid #e3e7ed; padding-top: .9em; }
small, .note, span { color: #66707e; font-weight: normal; font-size: 13px; }
svg { max-width: 100%; height: auto; } svg text { font-size: 13px; fill: #1c2430; } svg .dropped { fill: #b5601b; }
.row { display: flex; flex-wrap: wrap; gap: 12px; }
figure { margin: 0; padding: 8px; border: 1px solid #e3e7ed; border-radius: 6px; max-width: 250px; }
figure img { height: 96px; max-width: 220px; object-fit: contain; margin-right: 4px; background: #f6f7f9; }
.broken { height: 96px; width: 112px; display: grid; place-items: center; background: #f6f7f9; color: #66707e; }
figcaption { font-size: 12.5px; overflow-wrap: anywhere; min-width: 112px; }
figcaption span { display: block; font-size: 12px; }
</style></head><body>
{body}
</body></html>
"""
