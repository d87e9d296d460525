"""A step in a pod of a cluster: it has no run folder, and its MLflow run is nested in the run of its pipeline."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import executor_input
from vlmflow.config import recipes
from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.traits import traits_from_arguments
from vlmflow.tracking import mlflow_store

RECIPE = recipes.dump(
    {"seed": 0, "ingest": {"source": "scenes", "scenes": {"web": 8, "boxes": 0, "signs": 0, "test": 2}}}
)


def run_pod(
    folder: Path, function: str, given: str, kfp_run: str = "run-1", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a step with the command of its container, without VLMFLOW_RUN."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLMFLOW_", "MLFLOW_"))}
    command = [sys.executable, "-m", "vlmflow.runtime.step_runner", "kfp.dsl.executor_main", "--function", function]
    command += ["--module", f"components.{function}.component", "--executor_input", given, "--run", kfp_run]
    component = getattr(import_module(f"components.{function}.component"), function)
    command += traits_from_arguments(component.component_spec.implementation.container.args).flags()
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", **environment}
    return subprocess.run(command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, timeout=300)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("VLMFLOW_TRACKING", raising=False)
    return mlflow_store.client()


def test_the_steps_of_a_kfp_run_are_nested_in_one_mlflow_run(tmp_path: Path, store: MlflowClient) -> None:
    given = executor_input(tmp_path / "one", {"recipe": RECIPE}, {}, ["raw"])
    image = {"VLMFLOW_STEP_IMAGE": "registry/vlmflow-step@sha256:ab"}
    done = run_pod(tmp_path, "ingest", given, **image)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one" / "raw" / "card.json").exists() and not (tmp_path / "one" / "steps").exists()

    broken = executor_input(tmp_path / "two", {"recipe": "ingest: {source: nowhere}\n"}, {}, ["raw"])
    refused = run_pod(tmp_path, "ingest", broken, **image)
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith("error: ingest: ")
    assert "nowhere" in refused.stderr

    experiment = store.get_experiment_by_name(mlflow_store.EXPERIMENT)
    assert experiment is not None
    runs = store.search_runs([experiment.experiment_id], "tags.`vlmflow.kfp_run` = 'run-1'")
    (pipeline,) = [run for run in runs if run.data.tags.get("vlmflow.pipeline")]
    steps = {run.info.status: run for run in runs if run.data.tags.get("vlmflow.step") == "ingest"}
    assert len(runs) == 3 and set(steps) == {"FINISHED", "FAILED"}
    assert all(run.data.tags["mlflow.parentRunId"] == pipeline.info.run_id for run in steps.values())
    tags = steps["FINISHED"].data.tags
    assert tags["image"] == image["VLMFLOW_STEP_IMAGE"] and tags["output.raw"] and tags["code"]
    assert steps["FINISHED"].data.metrics["seconds"] > 0
    assert "nowhere" in steps["FAILED"].data.tags["error"]


def test_with_mlflow_unreachable_the_step_fails_before_its_work(tmp_path: Path) -> None:
    given = executor_input(tmp_path / "one", {"recipe": RECIPE}, {}, ["raw"])
    unreachable = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "VLMFLOW_MLFLOW_WAIT": "1"}
    refused = run_pod(tmp_path, "ingest", given, **unreachable)
    assert refused.returncode == 2
    assert "MLflow at http://127.0.0.1:9" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "one").exists()
