"""The report: everything that the steps left behind, on one page for a person to read."""

import itertools
import logging
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from components.report import figures, findings, formatting, samples
from components.report.artifacts import ArtifactPaths, RunArtifacts
from components.report.config import ReportConfig
from components.report.lineage import graph
from vlmflow.artifacts.ledger import MEANING
from vlmflow.config.recipes import load
from vlmflow.evaluation.config import GateConfig
from vlmflow.runtime.step import revision

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "trl", "datasets", "mlflow", "kserve", "kfp")


def render(places: ArtifactPaths, out: Path, recipe: str, section: ReportConfig) -> None:
    """Write the page to the file `out`; it needs no network and no script.

    Args:
        places: the artifacts of a life.
        recipe: the recipe's text, printed as it is; its section `gate` says how models are compared.

    Raises:
        DataError, ModelError: an artifact is missing or damaged.
    """
    life = RunArtifacts(places, load(GateConfig, recipe, "gate"))
    kept, dropped = samples.pairs(life, section.pairs, section.seed)
    content = {
        "life": life,
        "final": life.final,
        "funnel": _funnel(life.ledger),
        "questions": _questions(life),
        "kept": kept,
        "dropped": dropped,
        "intervals": {name: _intervals(life, name) for name in life.capabilities},
        "curves": {s.name: Markup(figures.curve(s.curve, s.name)) for s in life.trained if len(s.curve) > 1},
        "answers": samples.answers(life.final),
        "alignment": findings.alignment(life),
        "rivals": _rivals(life),
        "preferred": samples.preferences(life, section.preferences, section.seed),
        "asked": _asked(life),
        "graph": graph(life),
        "shortcomings": _grouped(life),
        "funnel_page": places.funnel.read_text(encoding="utf-8"),
        "recipe": recipe,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "revision": revision(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_environment().get_template("page.html.jinja").render(content), encoding="utf-8")
    logger.info("report: %s (%.1f MB)", out, out.stat().st_size / 2**20)


def _environment() -> Environment:
    """Everything from outside is escaped; a name that the template misspells is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for format in (formatting.label, formatting.percent, formatting.points, formatting.quantity, formatting.listing):
        environment.filters[format.__name__] = format
    return environment


def _intervals(life: RunArtifacts, name: str) -> dict[str, Any]:
    """The plot of the capability `name` after each stage that trained something and was measured on it."""
    measured = {stage.name: stage.capabilities[name] for stage in life.trained if name in stage.capabilities}
    last = list(measured.values())[-1]
    svg = Markup(figures.intervals(measured, name))
    return {"svg": svg, "metric": last.metric, "falling": not last.higher_is_better}


def _funnel(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A bar for the raw pairs, and one for what each rule that dropped any left over."""
    left = summary["rows_in"]
    bars = [{"rule": "", "meaning": "raw pairs", "left": left, "dropped": 0}]
    for rule, dropped in summary["dropped"].items():
        if dropped:
            left -= dropped
            bars.append({"rule": rule, "meaning": MEANING.get(rule, ""), "left": left, "dropped": dropped})
    return bars


def _questions(life: RunArtifacts) -> dict[str, dict[str, int]]:
    """Conversations by task and split, as the card counts them."""
    found: dict[str, dict[str, int]] = {}
    for key, count in (life.conversations.card.notes.get("rows") or {}).items():
        task, _, split = key.partition("/")
        found.setdefault(task, {})[split] = count
    return found


def _rivals(life: RunArtifacts) -> list[dict[str, Any]]:
    """A row for each capability: before, DPO, SFT control, and the paired differences; none without alignment."""
    before, aligned, control = (life.stages[name] for name in ("ocr", "aligned", "control"))
    if aligned.skipped:
        return []
    gained, won = life.changes["aligned"], life.against(aligned, control)
    return [
        {
            "capability": name,
            "metric": capability.metric,
            "higher_is_better": capability.higher_is_better,
            "values": [before.capabilities.get(name), capability, control.capabilities.get(name)],
            "differences": [gained.get(name), won.get(name)],
        }
        for name, capability in aligned.capabilities.items()
    ]


def _asked(life: RunArtifacts) -> dict[str, Any]:
    """The endpoint's smoke test: the picture, what was asked and answered, and every exchange's latency."""
    exchanges = life.transcript.get("exchanges") or []
    found = {"exchanges": exchanges, "picture": "", "prompt": "", "answer": ""}
    for exchange in exchanges:
        for choice in exchange["response"].get("choices", []):
            found["answer"] = choice["message"]["content"]
            parts = exchange["request"]["messages"][-1]["content"]
            found["prompt"] = " ".join(part["text"] for part in parts if part["type"] == "text")
    if found["answer"]:
        found["picture"] = samples.picture_of(life, life.transcript.get("image", ""))
    return found


def _grouped(life: RunArtifacts) -> dict[str, list[str]]:
    ordered = itertools.groupby(findings.shortcomings(life), lambda finding: finding.kind)
    return {kind: [finding.text for finding in group] for kind, group in ordered}
