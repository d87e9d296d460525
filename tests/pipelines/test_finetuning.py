"""Fine-tuning on files: the model it starts from, a run without preferences, and the shipped recipe."""

import json
from pathlib import Path

import pytest

from components.align.alignment import align
from components.base_model.load import BaseModelConfig, load_base_model
from components.plan.sections import check
from pipelines.catalog import load_pipeline
from pipelines.flow import sections_read
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.config import recipes
from vlmflow.config.sections import PLAIN
from vlmflow.errors import ModelError
from vlmflow.runtime.code_hash import ROOT


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "gate" / "chosen"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_the_base_model_is_the_one_of_a_run(model: Path, tmp_path: Path) -> None:
    loaded = load_base_model(BaseModelConfig(model=str(tmp_path / "run")), tmp_path / "out")
    assert loaded.hash == Checkpoint(model).hash


def test_a_missing_base_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (str(tmp_path / "none"), "no-one/nothing"):
        with pytest.raises(ModelError, match="no such folder") as error:
            load_base_model(BaseModelConfig(model=name), tmp_path / "out")
        assert "\n" not in str(error.value)


def test_without_preferences_the_fine_tuned_model_is_passed_on(model: Path, tmp_path: Path) -> None:
    missing = tmp_path / "preferences"
    missing.mkdir()
    (missing / "card.json").write_text(json.dumps({"skipped": "the recipe has no section 'ingest_preferences'"}))
    align(model, missing, tmp_path / "aligned", tmp_path / "control", "align: {}\n", "align")
    for out in ("aligned", "control"):
        passed = Checkpoint(tmp_path / out)
        assert passed.hash == Checkpoint(model).hash and "ingest_preferences" in passed.card["skipped"]


def test_the_recipe_has_the_sections_of_the_pipeline() -> None:
    sections = recipes.parse(str(ROOT / "recipes" / "finetuning.yaml"))
    check(sections)
    assert sections.keys() - PLAIN == set(sections_read(load_pipeline("finetuning")))
