"""Scores for Kubeflow's UI: metrics to compare runs by, a confusion matrix and a Markdown table."""

from pathlib import Path
from typing import Any

from kfp import dsl

from vlmflow.evaluation.scores import describe_examples


def log_metrics(scores: dict[str, Any], metrics: dsl.Metrics, confusion: dsl.ClassificationMetrics, page: Path) -> None:
    """Log each capability's value and the confusion matrix, and write the table as Markdown."""
    for name, value in scores["capabilities"].items():
        metrics.log_metric(name.replace(" ", "_"), value["value"])
    if matrix := scores["confusion"]:
        confusion.log_confusion_matrix(matrix["classes"], matrix["rows"])
    page.write_text(markdown(scores), encoding="utf-8")


def markdown(scores: dict[str, Any]) -> str:
    """A row for each capability: its value with the interval, and the values with blank and with shuffled images."""
    lines = [f"**After {scores['stage']}**", "", "| capability | metric | examples | value | blank | shuffled |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, value in scores["capabilities"].items():
        metric = value["metric"] + ("" if value["higher_is_better"] else " (lower is better)")
        controls = " | ".join(f"{value['controls'][kind]['value']:.3f}" for kind in ("blank", "shuffled"))
        lines.append(f"| {name} | {metric} | {describe_examples(value)} | {_interval(value)} | {controls} |")
        lines += [f"| {name} | {key} | | {_interval(more)} | | |" for key, more in value.get("secondary", {}).items()]
    lines += [f"\n{name}: not measured, {reason}" for name, reason in scores.get("not_measured", {}).items()]
    if any(value["n"] < value.get("available", 0) for value in scores["capabilities"].values()):
        lines.append(f"\n“n of m”: a sample of the m test examples, chosen with seed {scores['seed']}.")
    return "\n".join(lines) + "\n"


def _interval(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
