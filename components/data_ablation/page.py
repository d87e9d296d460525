"""The returns as one HTML page: a table and a plot, no request and no script."""

import io
from html import escape
from typing import Any

from matplotlib.figure import Figure

_PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>What curation bought</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c;background:#fff}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .6rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}.note{color:#666}
b.better{color:#0a7a3d}b.worse{color:#b3261e}
</style>
<h1>What curation bought</h1>
<p>One small model for each stage, with the same seed, budget and test pictures; it learned from the pairs that were
left after the stage. A gain is paired over the test pictures, with its {confidence:.0%} interval.</p>
{plot}
{table}
<p class="note">Pictures and captions are looked at in one pass, whose time stands with the pictures;
that of clusters stands with the score. One seed: what two
seeds differ by is not in the intervals.</p>
</html>
"""


def render(found: dict[str, Any]) -> str:
    """The page of what `returns.write` found."""
    return (
        _PAGE.replace("{confidence:.0%}", f"{found['confidence']:.0%}")
        .replace("{plot}", _plot(found))
        .replace("{table}", _table(found))
    )


def _table(found: dict[str, Any]) -> str:
    heads = ["stage", "rows dropped", "seconds"]
    for name in found["capabilities"]:
        heads += [name, "gain over raw", "gain over the stage before"]
    rows = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
    for stage in found["stages"]:
        seconds = "" if stage["seconds"] is None else f"{stage['seconds']:.1f}"
        cells = [escape(stage["stage"]), f"{stage['dropped']:,}", seconds]
        for name in found["capabilities"]:
            value = stage["capabilities"][name]
            cells.append(f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
            for against in ("over_raw", "over_stage_before"):
                cells.append("" if stage["stage"] == "raw" else _gain(stage["gains"][against][name]))
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _gain(gain: dict[str, Any]) -> str:
    text = f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    return f'<b class="{gain["verdict"]}">{text}</b>' if gain["verdict"] in ("better", "worse") else text


def _plot(found: dict[str, Any]) -> str:
    figure = Figure(figsize=(7.5, 2.6), layout="constrained")
    panels = figure.subplots(1, len(found["capabilities"]), squeeze=False)[0]
    for axes, name in zip(panels, found["capabilities"], strict=True):
        for row, stage in enumerate(found["stages"]):
            value = stage["capabilities"][name]
            axes.plot([value["low"], value["high"]], [row, row], color="#2b6cb0", linewidth=4, alpha=0.35)
            axes.plot(value["value"], row, "o", color="#2b6cb0", markersize=5)
        axes.set_yticks(range(len(found["stages"])), [stage["stage"] for stage in found["stages"]])
        axes.invert_yaxis()
        axes.set_title(f"{name} ({found['stages'][0]['capabilities'][name]['metric']})", fontsize=9)
        axes.grid(axis="x", alpha=0.4)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
