"""The scores of a model that a stage passed on unchanged are used again."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlmflow.artifacts import checkpoint, dataset
from vlmflow.evaluation import evaluate as module
from vlmflow.evaluation.config import EvaluateConfig
from vlmflow.evaluation.scores import read_scores


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A model with the scores of stage `caption`, and data; the list gets each model that is measured."""
    (tmp_path / "caption").mkdir()
    (tmp_path / "caption" / "config.json").write_text("{}")
    (tmp_path / "caption" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "caption" / "card.json").write_text(json.dumps({"family": "tiny-vlm"}))
    dataset.write(tmp_path / "pairs", "pairs", [])
    dataset.write(tmp_path / "conversations", "conversations", [])
    models: list[Path] = []
    monkeypatch.setattr(module, "_measure_suites", lambda model, *_: models.append(model) or [])
    evaluate(tmp_path, "caption", limit=9)
    return models


def evaluate(folder: Path, stage: str, **section: Any) -> dict[str, Any]:
    return module.evaluate(
        model=folder / stage,
        pairs=folder / "pairs",
        conversations=folder / "conversations",
        out=folder / f"{stage}-scores",
        stage=stage,
        section=EvaluateConfig(**section),
        earlier=folder / "caption-scores",
    )


def test_a_model_that_was_passed_on_is_not_measured_again(measured: list[Path], tmp_path: Path) -> None:
    checkpoint.copy_unchanged(tmp_path / "caption", tmp_path / "ground", "no boxes")
    scores = evaluate(tmp_path, "ground", limit=9, processes=2)
    assert len(measured) == 1
    assert scores == read_scores(tmp_path / "ground-scores")
    assert scores == {**read_scores(tmp_path / "caption-scores"), "stage": "ground"}
    assert (tmp_path / "ground-scores" / "examples.parquet").exists()


@pytest.mark.parametrize("change", ["weights", "section", "data"])
def test_other_weights_settings_or_data_are_measured(change: str, measured: list[Path], tmp_path: Path) -> None:
    checkpoint.copy_unchanged(tmp_path / "caption", tmp_path / "ground", "no boxes")
    if change == "weights":
        (tmp_path / "ground" / "model.safetensors").write_bytes(b"other")
    if change == "data":
        row = {"uid": "u", "pair": "", "images": [b""], "messages": [], "task": "vqa", "split": "test"}
        dataset.write(tmp_path / "conversations", "conversations", [row])
    evaluate(tmp_path, "ground", limit=8 if change == "section" else 9)
    assert len(measured) == 2
