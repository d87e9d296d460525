"""The gains as one HTML page with a table and a plot; it loads nothing from the network and has no scripts."""

import io
from html import escape
from typing import Any

from matplotlib.figure import Figure

_PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Data ablation</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c;background:#fff}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .6rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}.note{color:#666}
b.better{color:#0a7a3d}b.worse{color:#b3261e}
</style>
<h1>Data ablation: gains of curation</h1>
<p>The same small model was trained on the pairs that remain after each stage, with the same seed and budget.
A gain is the paired difference over the test images, with its {confidence:.0%} interval.</p>
{plot}
{table}
<p class="note">Images and captions are examined in one pass; its time is listed under images. The time of clusters is
listed under score. The intervals do not include the variation between seeds: there is one seed.</p>
</html>
"""


def render(report: dict[str, Any]) -> str:
    """Return the page for the result of `write_gains`."""
    return (
        _PAGE.replace("{confidence:.0%}", f"{report['confidence']:.0%}")
        .replace("{plot}", _plot(report))
        .replace("{table}", _table(report))
    )


def _table(report: dict[str, Any]) -> str:
    heads = ["stage", "rows dropped", "seconds"]
    for name in report["capabilities"]:
        heads += [name, "gain over raw", "gain over the previous stage"]
    rows = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
    for stage in report["stages"]:
        seconds = "" if stage["seconds"] is None else f"{stage['seconds']:.1f}"
        cells = [escape(stage["stage"]), f"{stage['dropped']:,}", seconds]
        for name in report["capabilities"]:
            value = stage["capabilities"][name]
            cells.append(f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
            for baseline in ("over_raw", "over_previous_stage"):
                cells.append("" if stage["stage"] == "raw" else _gain(stage["gains"][baseline][name]))
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _gain(gain: dict[str, Any]) -> str:
    text = f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    return f'<b class="{gain["verdict"]}">{text}</b>' if gain["verdict"] in ("better", "worse") else text


def _plot(report: dict[str, Any]) -> str:
    figure = Figure(figsize=(7.5, 2.6), layout="constrained")
    panels = figure.subplots(1, len(report["capabilities"]), squeeze=False)[0]
    for axes, name in zip(panels, report["capabilities"], strict=True):
        for row, stage in enumerate(report["stages"]):
            value = stage["capabilities"][name]
            axes.plot([value["low"], value["high"]], [row, row], color="#2b6cb0", linewidth=4, alpha=0.35)
            axes.plot(value["value"], row, "o", color="#2b6cb0", markersize=5)
        axes.set_yticks(range(len(report["stages"])), [stage["stage"] for stage in report["stages"]])
        axes.invert_yaxis()
        axes.set_title(f"{name} ({report['stages'][0]['capabilities'][name]['metric']})", fontsize=9)
        axes.grid(axis="x", alpha=0.4)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
