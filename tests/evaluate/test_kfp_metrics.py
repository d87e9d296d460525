"""Metrics and Markdown that an evaluation and the gate write for Kubeflow's UI."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kfp import dsl

from components.evaluate.kfp_metrics import log_metrics
from components.gate.markdown import markdown
from vlmflow.evaluation import capabilities


def value(number: float, metric: str = "exact match", higher_is_better: bool = True) -> dict[str, Any]:
    found = {"value": number, "low": number - 0.1, "high": number + 0.1}
    return {**found, "n": 20, "metric": metric, "higher_is_better": higher_is_better,
            "controls": {"blank": {"value": 0.1}, "shuffled": {"value": 0.2}}}  # fmt: skip


def test_metrics_confusion_matrix_and_table_of_an_evaluation(tmp_path: Path) -> None:
    errors = value(0.3, "CER", higher_is_better=False)
    matrix = {"classes": ["cat", "dog"], "rows": [[3, 1], [0, 4]]}
    sampled = value(0.75) | {"n": 300, "available": 2113, "secondary": {"macro accuracy": value(0.5)}}
    scores = {"stage": "ocr", "capabilities": {"ocr": sampled, "ocr errors": errors}, "confusion": matrix, "seed": 7}
    scores["not_measured"] = {"retrieval": "1 distinct captions of 9 captioned test images"}
    metrics, confusion = dsl.Metrics(), dsl.ClassificationMetrics()
    log_metrics(scores, metrics, confusion, tmp_path / "page")
    assert metrics.metadata == {"ocr": 0.75, "ocr_errors": 0.3}
    logged = confusion.metadata["confusionMatrix"]
    assert [spec["displayName"] for spec in logged["annotationSpecs"]] == ["cat", "dog"]
    assert [row["row"] for row in logged["rows"]] == matrix["rows"]
    lines = (tmp_path / "page").read_text().splitlines()
    assert lines[0] == "**After ocr**"
    assert lines[-7:] == [
        "| ocr | exact match | 300 of 2,113 | 0.750 [0.650, 0.850] | 0.100 | 0.200 |",
        "| ocr | macro accuracy | | 0.500 [0.400, 0.600] | | |",
        "| ocr errors | CER (lower is better) | 20 | 0.300 [0.200, 0.400] | 0.100 | 0.200 |",
        "",
        "retrieval: not measured, 1 distinct captions of 9 captioned test images",
        "",
        "“n of m”: a sample of the m test examples, chosen with seed 7.",
    ]


def test_confusion_matrix_counts_true_and_predicted_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "classify", lambda *_: np.eye(3)[[0, 1, 1, 2]])
    found = capabilities.zero_shot(None, [None] * 4, ["ant", "bee", "cow", "cow"])  # type: ignore[arg-type, list-item]
    assert found.confusion == {"classes": ["ant", "bee", "cow"], "rows": [[1, 0, 0], [0, 1, 0], [0, 1, 1]]}
    assert found.score.tolist() == [1, 1, 0, 1]


def test_no_confusion_matrix_for_more_classes_than_a_page_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [f"kind {i}" for i in range(51)]
    monkeypatch.setattr(capabilities, "classify", lambda *_: np.eye(51))
    assert capabilities.zero_shot(None, [None] * 51, labels).confusion is None  # type: ignore[arg-type, list-item]


def comparison(**more: Any) -> dict[str, Any]:
    return {"capability": "ocr", "challenger": 0.5, "champion": 0.75, "difference": -0.25, "low": -0.3,
            "high": -0.2, "verdict": "worse", **more}  # fmt: skip


def test_markdown_of_a_refused_candidate() -> None:
    lost = comparison(capability="grounding", challenger=None, difference=None, low=None, high=None, verdict="lost")
    decision = {"chosen": "fallback", "promoted": False, "against": "3", "reasons": ["alignment refused: ocr"],
                "capabilities": [comparison(), lost]}  # fmt: skip
    text = markdown(decision)
    assert text.startswith(
        "**The candidate was refused; the model before it was kept. It stays a challenger.**\n\n"
        "- alignment refused: ocr\n"
    )
    assert "| ocr | 0.500 | 0.750 | -0.250 [-0.300, -0.200] | worse |" in text
    assert "| grounding | not scored | 0.750 | | lost |" in text


def test_markdown_of_a_first_version() -> None:
    decision = {"chosen": "aligned", "promoted": True, "against": None, "reasons": ["no champion yet"],
                "capabilities": []}  # fmt: skip
    assert markdown(decision) == "**The candidate was kept. It is promoted to champion.**\n\n- no champion yet\n"
