"""The report: a self-contained HTML page about an end-to-end run, without scripts or network access.

`artifacts` reads the outputs of the steps, `findings` lists shortcomings, `figures`, `lineage` and `samples` prepare
plots, the lineage graph and images; this module renders the template `page.html.jinja`.
"""

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
from vlmflow.runtime.container_image import revision

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "trl", "datasets", "mlflow", "kserve", "kfp")


def render(paths: ArtifactPaths, out: Path, recipe: str, section: ReportConfig) -> None:
    """Write the page to the file `out`.

    Args:
        paths: the artifacts of the run.
        recipe: the recipe's text, included verbatim; its section `gate` configures the comparison of models.

    Raises:
        DataError, ModelError: an artifact is missing or damaged.
    """
    run = RunArtifacts(paths, load(GateConfig, recipe, "gate"))
    kept, dropped = samples.pairs(run, section.pairs, section.seed)
    content = {
        "run": run,
        "final": run.final,
        "funnel": _funnel(run.ledger),
        "questions": _questions(run),
        "kept": kept,
        "dropped": dropped,
        "intervals": {name: _intervals(run, name) for name in run.capabilities},
        "curves": {s.name: Markup(figures.curve(s.curve, s.name)) for s in run.trained if len(s.curve) > 1},
        "answers": samples.answers(run.final),
        "alignment": findings.alignment(run),
        "alignment_table": _alignment_table(run),
        "preference_pairs": samples.preferences(run, section.preferences, section.seed),
        "smoke_test": _smoke_test(run),
        "graph": graph(run),
        "shortcomings": _findings_by_kind(run),
        "funnel_page": paths.funnel.read_text(encoding="utf-8"),
        "recipe": recipe,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "revision": revision(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_environment().get_template("page.html.jinja").render(content), encoding="utf-8")
    logger.info("report: %s (%.1f MB)", out, out.stat().st_size / 2**20)


def _environment() -> Environment:
    """A Jinja environment that escapes all values and raises on undefined names."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for format in (formatting.label, formatting.percent, formatting.points, formatting.quantity):
        environment.filters[format.__name__] = format
    return environment


def _intervals(run: RunArtifacts, name: str) -> dict[str, Any]:
    """The plot of the capability `name` after each trained stage that was measured on it."""
    measured = {stage.name: stage.capabilities[name] for stage in run.trained if name in stage.capabilities}
    last = list(measured.values())[-1]
    svg = Markup(figures.intervals(measured, name))
    return {"svg": svg, "metric": last.metric, "lower_is_better": not last.higher_is_better}


def _funnel(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Bars of the funnel: the raw pairs, and the remaining pairs after each rule that dropped any."""
    remaining = summary["rows_in"]
    bars = [{"rule": "", "meaning": "raw pairs", "remaining": remaining, "dropped": 0}]
    for rule, dropped in summary["dropped"].items():
        if dropped:
            remaining -= dropped
            bars.append({"rule": rule, "meaning": MEANING.get(rule, ""), "remaining": remaining, "dropped": dropped})
    return bars


def _questions(run: RunArtifacts) -> dict[str, dict[str, int]]:
    """Conversations by task and split, from the dataset's card."""
    counts: dict[str, dict[str, int]] = {}
    for key, count in (run.conversations.card.notes.get("rows") or {}).items():
        task, _, split = key.partition("/")
        counts.setdefault(task, {})[split] = count
    return counts


def _alignment_table(run: RunArtifacts) -> list[dict[str, Any]]:
    """A row for each capability: before, DPO, SFT control and paired differences; empty without alignment."""
    before, aligned, control = (run.stages[name] for name in ("ocr", "aligned", "control"))
    if aligned.skipped:
        return []
    gained, won = run.changes["aligned"], run.against(aligned, control)
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


def _smoke_test(run: RunArtifacts) -> dict[str, Any]:
    """The endpoint's smoke test: image, prompt, answer, and the exchanges with their latency."""
    exchanges = run.transcript.get("exchanges") or []
    result = {"exchanges": exchanges, "image": "", "prompt": "", "answer": ""}
    for exchange in exchanges:
        for choice in exchange["response"].get("choices", []):
            result["answer"] = choice["message"]["content"]
            parts = exchange["request"]["messages"][-1]["content"]
            result["prompt"] = " ".join(part["text"] for part in parts if part["type"] == "text")
    if result["answer"]:
        result["image"] = samples.image_of(run, run.transcript.get("image", ""))
    return result


def _findings_by_kind(run: RunArtifacts) -> dict[str, list[str]]:
    ordered = itertools.groupby(findings.shortcomings(run), lambda finding: finding.kind)
    return {kind: [finding.text for finding in group] for kind, group in ordered}
