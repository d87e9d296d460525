"""What Kubeflow's UI shows of an evaluation and of the gate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kfp import dsl

from components.evaluate.kfp_metrics import log_metrics
from components.gate.markdown import markdown
from vlmflow.evaluation import capabilities as can


def value(number: float, metric: str = "exact match", higher_is_better: bool = True) -> dict[str, Any]:
    found = {"value": number, "low": number - 0.1, "high": number + 0.1}
    return {**found, "metric": metric, "higher_is_better": higher_is_better,
            "controls": {"blank": {"value": 0.1}, "shuffled": {"value": 0.2}}}  # fmt: skip


def test_an_evaluation(tmp_path: Path) -> None:
    errors = value(0.3, "CER", higher_is_better=False)
    matrix = {"classes": ["cat", "dog"], "rows": [[3, 1], [0, 4]]}
    scores = {"stage": "ocr", "capabilities": {"reading": value(0.75), "reading errors": errors}, "confusion": matrix}
    metrics, confusion = dsl.Metrics(), dsl.ClassificationMetrics()
    log_metrics(scores, metrics, confusion, tmp_path / "page")
    assert metrics.metadata == {"reading": 0.75, "reading_errors": 0.3}
    logged = confusion.metadata["confusionMatrix"]
    assert [spec["displayName"] for spec in logged["annotationSpecs"]] == ["cat", "dog"]
    assert [row["row"] for row in logged["rows"]] == matrix["rows"]
    lines = (tmp_path / "page").read_text().splitlines()
    assert lines[0] == "**After read**"
    assert lines[-2:] == [
        "| reading | exact match | 0.750 [0.650, 0.850] | 0.100 | 0.200 |",
        "| reading errors | CER (less is better) | 0.300 [0.200, 0.400] | 0.100 | 0.200 |",
    ]


def test_a_class_is_counted_by_what_it_was_taken_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(can, "classify", lambda *_: np.eye(3)[[0, 1, 1, 2]])
    found = can.zero_shot(None, [None] * 4, ["ant", "bee", "cow", "cow"])  # type: ignore[arg-type, list-item]
    assert found.confusion == {"classes": ["ant", "bee", "cow"], "rows": [[1, 0, 0], [0, 1, 0], [0, 1, 1]]}
    assert found.score.tolist() == [1, 1, 0, 1]


def test_more_classes_than_a_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [f"kind {i}" for i in range(51)]
    monkeypatch.setattr(can, "classify", lambda *_: np.eye(51))
    assert can.zero_shot(None, [None] * 51, labels).confusion is None  # type: ignore[arg-type, list-item]


def comparison(**more: Any) -> dict[str, Any]:
    return {"capability": "reading", "challenger": 0.5, "champion": 0.75, "difference": -0.25, "low": -0.3,
            "high": -0.2, "verdict": "worse", **more}  # fmt: skip


def test_a_verdict() -> None:
    lost = comparison(capability="grounding", challenger=None, difference=None, low=None, high=None, verdict="lost")
    decision = {"chosen": "fallback", "promoted": False, "against": "3", "reasons": ["alignment refused: reading"],
                "capabilities": [comparison(), lost]}  # fmt: skip
    text = markdown(decision)
    assert text.startswith("**The model before it goes on. It stays a challenger.**\n\n- alignment refused: reading\n")
    assert "| reading | 0.500 | 0.750 | -0.250 [-0.300, -0.200] | worse |" in text
    assert "| grounding | not scored | 0.750 | | lost |" in text


def test_a_first_version() -> None:
    decision = {"chosen": "aligned", "promoted": True, "against": None, "reasons": ["no champion yet"],
                "capabilities": []}  # fmt: skip
    assert markdown(decision) == "**The candidate goes on. It may become the champion.**\n\n- no champion yet\n"
