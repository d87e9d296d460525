"""A real checkpoint in a real registry: resolved, loaded without pickle, registered completely or not at all."""

import io
import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components.register.registration import CODE, register
from models.tiny.build import build_language_model
from vlmflow.artifacts.checkpoint import Checkpoint, save
from vlmflow.errors import ModelError, ServiceError
from vlmflow.inference import generation, loading
from vlmflow.serving.answering import MAX_NEW_TOKENS
from vlmflow.serving.resolve import resolve
from vlmflow.tracking import mlflow_run, mlflow_store
from vlmflow.tracking.registry import RegistryConfig, format_versions, list_versions


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("VLMFLOW_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, scores/ and verdict/ as the gate writes them."""
    folder = tmp_path_factory.mktemp("gate")
    model, processor = build_language_model(
        ["a red circle", "what is it"] * 20, vision_layers=1, text_layers=1, num_hidden_layers=1
    )
    checkpoint = save(folder / "model", model, processor, family="tiny-vlm", step="align", parent="p", datasets=["d"])
    contents: dict[str, Any] = {
        "scores/scores.json": {
            "model": checkpoint.hash,
            "data": ["d"],
            "capabilities": {"read lines": {"value": 0.5, "low": 0.25, "high": 0.75}},
        },
        "verdict/verdict.json": {"promoted": True, "against": None, "reasons": ["the first"]},
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(json.dumps(content))
    return folder


def register_artifacts(artifacts: Path, out: Path, name: str) -> dict[str, Any]:
    model, scores, verdict = (artifacts / part for part in ("model", "scores", "verdict"))
    return register(model, scores, verdict, out, "seed: 0\n", RegistryConfig(name=name), revision="abc")


def test_a_version_resolves_by_alias_and_answers_like_its_checkpoint(artifacts: Path, tmp_path: Path) -> None:
    written = register_artifacts(artifacts, tmp_path, "vlm")
    assert json.loads((tmp_path / "version.json").read_text()) == written
    folder = resolve("models:/vlm@champion")
    assert Checkpoint(folder).hash == Checkpoint(artifacts / "model").hash == written["model_hash"]
    assert resolve("models:/vlm/1").samefile(folder)
    assert json.loads((folder.parent / "scores/scores.json").read_text())["data"] == ["d"]
    tags = list_versions("vlm")[0].tags
    assert (tags["parent"], tags["datasets"], tags["git_revision"]) == ("p", "d", "abc")

    client = mlflow_store.client()
    version = client.get_model_version("vlm", "1")
    assert version.description and version.source and version.run_id
    assert "- read lines: 0.500 [0.250, 0.750]" in version.description
    (metric,) = client.get_logged_model(version.source.rpartition("/")[2]).metrics or []
    assert (metric.key, metric.value, metric.dataset_name) == ("read_lines", 0.5, "evaluation")
    source = client.get_run(version.run_id)
    assert source.data.metrics == {"read_lines": 0.5}
    assert source.inputs and source.inputs.dataset_inputs[0].dataset.name == "evaluation"

    root = folder.parent.parent
    assert not [path for path in root.rglob("*") if path.suffix in (".pkl", ".pickle", ".bin", ".pt")]
    import mlflow
    import pandas as pd

    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "blue").save(buffer, "PNG")
    frame = pd.DataFrame({"image": [buffer.getvalue()], "prompt": ["what is it"]})
    loaded, image = loading.load(artifacts / "model"), Image.new("RGB", (64, 48), "blue")
    direct = generation.chat(loaded, [image], ["what is it"], max_new_tokens=MAX_NEW_TOKENS)
    assert mlflow.pyfunc.load_model("models:/vlm@champion").predict(frame) == direct


@pytest.mark.parametrize("method", ["create_model_version", "set_registered_model_alias"])
def test_a_failure_leaves_no_incomplete_version(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fail(*_: Any, **__: Any) -> None:
        raise MlflowException("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, method, fail)
        with pytest.raises(ServiceError, match="disk is full"):
            register_artifacts(artifacts, tmp_path, method)
    assert list_versions(method) == [] and not (tmp_path / "version.json").exists()
    assert register_artifacts(artifacts, tmp_path, method)["alias"] == "champion"


def test_an_alias_set_without_a_response_is_restored(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    first = register_artifacts(artifacts, tmp_path / "first", "kept")
    other = shutil.copytree(artifacts, tmp_path / "other")
    (other / "model" / "chat_template.jinja").write_text("{{ messages }}")
    content = {"model": Checkpoint(other / "model").hash, "data": ["d"], "capabilities": {}}
    (other / "scores/scores.json").write_text(json.dumps(content))
    decision = {"promoted": True, "against": first["version"], "reasons": ["better"]}
    (other / "verdict/verdict.json").write_text(json.dumps(decision))
    set_alias, responses = MlflowClient.set_registered_model_alias, iter([False])

    def lost(*arguments: Any) -> None:
        set_alias(*arguments)
        if not next(responses, True):
            raise MlflowException("the connection was reset")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_registered_model_alias", lost)
        with pytest.raises(ServiceError, match="connection was reset"):
            register_artifacts(other, tmp_path / "second", "kept")
    assert [(version.version, version.aliases) for version in list_versions("kept")] == [("1", ("champion",))]
    assert register_artifacts(other, tmp_path / "second", "kept")["alias"] == "champion"


def test_a_wrong_reference_lists_the_registered_versions(artifacts: Path, tmp_path: Path) -> None:
    register_artifacts(artifacts, tmp_path, "listed")
    for reference in ("models:/listed@champoin", "models:/listed/99", "models:/unlisted/1", "models:/listed"):
        with pytest.raises(ModelError) as caught:
            resolve(reference)
        assert reference in str(caught.value) and "models:/listed/1 (champion)" in str(caught.value)
    assert "models:/listed/1 (champion)" in format_versions()


def test_scores_of_another_model_are_an_error(artifacts: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "scores.json").write_text(json.dumps({"model": "f" * 64, "data": []}))
    with pytest.raises(ModelError, match="these are the scores of model ffffffffffff"):
        register(
            artifacts / "model", scores, artifacts / "verdict", tmp_path, "seed: 0\n", RegistryConfig(name="other")
        )
    assert list_versions("other") == []


def test_registration_does_not_change_the_steps_own_run(artifacts: Path, tmp_path: Path) -> None:
    with mlflow_run.start_run("register") as step:
        register_artifacts(artifacts, tmp_path, "nested")
        step.log_metrics({"after": 1.0})
    assert list_versions("nested")[0].tags["step_run"] == step.id
    run = mlflow_store.client().get_run(str(step.id))
    assert run.info.status == "FINISHED" and run.data.metrics == {"after": 1.0}


@pytest.mark.parametrize("name", ["", "a/b", "models:x", "a@b"])
def test_invalid_names_are_errors(name: str) -> None:
    with pytest.raises(ValueError, match="must be a word without"):
        RegistryConfig(name=name)


def test_a_version_contains_its_packages_apart_from_those_of_a_program(artifacts: Path, tmp_path: Path) -> None:
    register_artifacts(artifacts, tmp_path, "apart")
    code = resolve("models:/apart/1").parent.parent / "code"
    assert [path.name for path in code.iterdir()] == [CODE]
    assert sorted(path.name for path in (code / CODE).iterdir()) == ["models", "vlmflow"]
    assert not list(code.rglob("__pycache__"))


def test_a_program_keeps_its_own_models_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about its own type hints
        from vlmflow.serving.pyfunc import VersionPackages
    for folder, content in (("version", "NAME = 'of the version'"), ("program", "NAME = 'of the program'")):
        for package in ("models", "vlmflow"):
            (tmp_path / folder / package).mkdir(parents=True)
            (tmp_path / folder / package / "__init__.py").write_text(content)
            (tmp_path / folder / package / "late.py").write_text(content)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("models", "vlmflow")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "program")
    packages, path = VersionPackages(tmp_path / "version"), list(sys.path)
    import models as theirs

    for _ in range(2):
        with packages.importable():
            ours = import_module("models")
            assert ours.NAME == import_module("vlmflow.late").NAME == "of the version"
    assert sys.modules["models"] is theirs and sys.path == path and "vlmflow" not in sys.modules
    assert packages.modules["models"] is ours and import_module("models.late").NAME == "of the program"
