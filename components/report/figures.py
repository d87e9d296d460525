"""Plots as SVG with the page's CSS colours, so that a plot suits light and dark mode."""

import io
import re
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from components.report.artifacts import Capability
from components.report.formatting import label

WIDTH = 3.2  # inches
# Matplotlib does not support CSS variables: these unique placeholder colours are replaced in the SVG text.
INK, MUTED, GRID, ACCENT, WARM = "#010203", "#010204", "#010205", "#010206", "#010207"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", ACCENT: "--accent", WARM: "--warm"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 9,
    "lines.solid_capstyle": "round",
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": MUTED,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
}


def curve(points: list[dict[str, float]], name: str) -> str:
    """Plot the training loss over the steps."""
    with rc_context(_STYLE):
        figure, axes = _figure(1.9, left=0.4, bottom=0.42)
        axes.plot([p["step"] for p in points], [p["loss"] for p in points], color=ACCENT, linewidth=1.6)
        axes.grid(axis="y")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlim(left=0)
        return _svg(figure, f"Training loss of {label(name)}", f"curve-{name}")


def intervals(stages: dict[str, Capability], name: str) -> str:
    """Plot a capability stage by stage: value with its interval, and its blank and shuffled controls.

    Args:
        stages: stage → its capability; the first stage is at the top.
    """
    with rc_context(_STYLE):
        figure, axes = _figure(0.4 + 0.23 * len(stages), left=0.88, bottom=0.26)
        for row, capability in enumerate(stages.values()):
            axes.plot([capability.low, capability.high], [row, row], color=ACCENT, linewidth=3.5, alpha=0.35)
            axes.plot(capability.value, row, "o", color=ACCENT, markersize=4.5)
            for kind, marker in (("blank", "x"), ("shuffled", "|")):
                if kind in capability.controls:
                    value = capability.controls[kind]["value"]
                    axes.plot(value, row, marker, color=WARM, markersize=5, markeredgewidth=1.3)
        ends = [end for c in stages.values() for end in (c.high, *(one["value"] for one in c.controls.values()))]
        axes.set_xlim(-0.03, max(1.0, *ends) * 1.03)
        axes.set_ylim(len(stages) - 0.5, -0.5)
        axes.set_yticks(range(len(stages)), [label(stage) for stage in stages])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        return _svg(figure, f"{label(name)} after each stage, with intervals and controls", f"intervals-{name}")


def _figure(height: float, left: float, bottom: float) -> tuple[Figure, Axes]:
    """An empty figure of width `WIDTH` with margins for labels, all in inches, so that panels line up."""
    figure = Figure(figsize=(WIDTH, height))
    figure.patch.set_visible(False)
    across, up = WIDTH - left - 0.12, height - bottom - 0.08
    axes = figure.add_axes((left / WIDTH, bottom / height, across / WIDTH, up / height))
    axes.patch.set_visible(False)
    return figure, axes


def _svg(figure: Figure, title: str, salt: str) -> str:
    """The figure as an SVG element; `salt` makes its ids differ from those of other figures."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # ids such as axes_1 are the same in all figures
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)  # the page sets the size
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg", f'<svg class="plot" role="img" aria-label="{title}"', 1)
