"""The page of the check for Kubeflow's UI and MLflow, which show HTML but no image files."""

import base64
from html import escape
from pathlib import Path
from typing import Any


def write_page(found: dict[str, Any], figure: Path, page: Path) -> None:
    """Write the finding as a table, with the figure inside.

    Args:
        found: the finding, as `check_learning` returns it.
        figure: the PNG file.
        page: the HTML file to write.
    """
    rows = "".join(_row(name, value) for name, value in found["capabilities"].items())
    image = base64.b64encode(figure.read_bytes()).decode()
    title = f"{escape(found['family'])} {'learned' if found['learned'] else 'did not learn'}"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(
        f"<!doctype html><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:14px sans-serif} td,th{padding:2px 8px;text-align:left} img{max-width:100%}</style>"
        f"<h1>{title}</h1><p>{found['steps']} steps.</p>"
        "<table><tr><th>capability<th>untrained<th>trained<th>shuffled pairs<th>over untrained<th>over shuffled pairs"
        f"{rows}</table><img alt='first held-out examples' src='data:image/png;base64,{image}'>\n",
        encoding="utf-8",
    )


def _row(name: str, value: dict[str, Any]) -> str:
    scores = (f"{value[variant]['value']:.3f}" for variant in ("untrained", "trained", "shuffled"))
    gains = (_gain(value[f"over_{control}"]) for control in ("untrained", "shuffled"))
    return "<tr>" + "".join(f"<td>{escape(cell)}" for cell in (f"{name} ({value['metric']})", *scores, *gains))


def _gain(gain: dict[str, Any]) -> str:
    return f"{gain['difference']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}): {gain['verdict']}"
