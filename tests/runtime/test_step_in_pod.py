"""A step in a pod of a cluster: it has no run folder, and its MLflow run is nested in the run of its pipeline."""

import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines import step_cli
from tests.conftest import executor_input
from vlmflow.config import recipes
from vlmflow.runtime import pod_step, step_runner
from vlmflow.runtime.step_task import StepTask
from vlmflow.runtime.traits import traits_from_arguments
from vlmflow.tracking import mlflow_store, step_run

RECIPE = recipes.dump(
    {"seed": 0, "ingest": {"source": "scenes", "scenes": {"web": 8, "boxes": 0, "signs": 0, "test": 2}}}
)


def run_pod(
    folder: Path, function: str, given: str, kfp_run: str = "run-1", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a step with the arguments of its container and the run's ID from the pod's label, without VLMFLOW_RUN.

    In this process, which saves the imports; the environment is restored.
    """
    component = getattr(import_module(f"components.{function}.component"), function)
    arguments = ["kfp.dsl.executor_main", "--function", function, "--module", f"components.{function}.component"]
    arguments += ["--executor_input", given]
    arguments += traits_from_arguments(component.component_spec.implementation.container.args).flags()
    before, out, err = dict(os.environ), io.StringIO(), io.StringIO()
    for name in [name for name in before if name.startswith(("VLMFLOW_", "MLFLOW_"))]:
        del os.environ[name]
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    os.environ.update({"VLMFLOW_KFP_RUN": kfp_run, **tracking, **environment})
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = step_runner.main(arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """One store for all tests, whose creation takes seconds; each test has its own KFP run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")
        patch.delenv("VLMFLOW_TRACKING", raising=False)
        yield mlflow_store.client()


def runs_of(store: MlflowClient, kfp_run: str) -> list[Run]:
    """Return the MLflow runs with the tag of a KFP run, in all experiments."""
    return list(store.search_runs(mlflow_store.experiment_ids(store), f"tags.`vlmflow.kfp_run` = '{kfp_run}'"))


def test_the_steps_of_a_kfp_run_are_nested_in_one_mlflow_run(tmp_path: Path, store: MlflowClient) -> None:
    given = executor_input(tmp_path / "one", {"recipe": RECIPE}, {}, ["raw"])
    image = {"VLMFLOW_IMAGE": "registry/vlmflow-step@sha256:ab", "MLFLOW_TRACKING_URI": mlflow_store.uri()}
    done = run_pod(tmp_path, "ingest", given, **image)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one" / "raw" / "card.json").exists() and not (tmp_path / "one" / "steps").exists()

    broken = executor_input(tmp_path / "two", {"recipe": "ingest: {source: nowhere}\n"}, {}, ["raw"])
    refused = run_pod(tmp_path, "ingest", broken, **image)
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith("error: ingest: ")
    assert "nowhere" in refused.stderr

    runs = runs_of(store, "run-1")
    (pipeline,) = [run for run in runs if run.data.tags.get("vlmflow.pipeline")]
    steps = {run.info.status: run for run in runs if run.data.tags.get("vlmflow.step") == "ingest"}
    assert len(runs) == 3 and set(steps) == {"FINISHED", "FAILED"}
    assert all(run.data.tags["mlflow.parentRunId"] == pipeline.info.run_id for run in steps.values())
    tags = steps["FINISHED"].data.tags
    assert tags["image"] == image["VLMFLOW_IMAGE"] and tags["output.raw"] and tags["code"]
    assert steps["FINISHED"].data.metrics["seconds"] > 0
    assert "nowhere" in steps["FAILED"].data.tags["error"]


def test_with_mlflow_unreachable_the_step_fails_before_its_work(tmp_path: Path) -> None:
    given = executor_input(tmp_path / "one", {"recipe": RECIPE}, {}, ["raw"])
    unreachable = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "VLMFLOW_MLFLOW_WAIT": "1"}
    refused = run_pod(tmp_path, "ingest", given, **unreachable)
    assert refused.returncode == 2
    assert "MLflow at http://127.0.0.1:9" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "one").exists()


@pytest.fixture
def pod(tmp_path: Path, store: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run `ingest` in this process as in a pod; returns the environment's MLFLOW_RUN_ID during its work."""
    seen: list[str] = []

    def work(task: StepTask) -> None:
        seen.append(os.environ.get("MLFLOW_RUN_ID", ""))
        task.outputs["raw"].mkdir(parents=True)
        (task.outputs["raw"] / "rows").write_text("rows")

    def run(label: str, **environment: str) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(pod_step, "execute", work)
            patch.setattr(pod_step, "fingerprint", lambda task: {"section": {"seed": 0}})
            for name in ("VLMFLOW_KFP_RUN", "MLFLOW_RUN_ID"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            given = executor_input(tmp_path / label, {"stage": label}, {}, ["raw", "executor-logs"])
            pod_step.run_in_pod(StepTask("components.ingest.component", "ingest", json.loads(given)))
        return seen[-1]

    return run


def test_a_run_that_kfp_has_created_is_adopted(pod: Callable[..., str], store: MlflowClient) -> None:
    """KFP's MLflow plugin nests the run of a step in that of its loop or of the pipeline, in another experiment."""
    experiment = store.create_experiment("kfp")
    pipeline = store.create_run(experiment, run_name="end-to-end").info.run_id
    loop = store.create_run(experiment, tags={"mlflow.parentRunId": pipeline}).info.run_id
    own = {
        stage: store.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id
        for stage, parent in {"first": pipeline, "second": loop}.items()
    }
    for stage, run in own.items():
        assert pod(stage, VLMFLOW_KFP_RUN="run-2", MLFLOW_RUN_ID=run) == "", "a Trainer would end the run"
    assert {run.info.run_id for run in runs_of(store, "run-2")} == {pipeline, *own.values()}, "no second run"
    for stage, run in own.items():
        logged = store.get_run(run)
        assert logged.info.status == "FINISHED" and logged.info.run_name == f"ingest-{stage}"
        assert logged.data.tags["vlmflow.step"] == "ingest" and logged.data.tags["output.raw"]
    assert store.get_run(own["second"]).data.tags["mlflow.parentRunId"] == loop
    assert step_run.find_or_create_pipeline_run("run-2") == pipeline, "`finish` reports to it"


def test_two_kfp_runs_have_two_mlflow_runs(
    pod: Callable[..., str], store: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    for label, kfp_run in {"a": "run-3", "b": "run-4", "c": "run-4"}.items():
        pod(label, VLMFLOW_KFP_RUN=kfp_run)
    runs = [*runs_of(store, "run-3"), *runs_of(store, "run-4")]
    parents = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in runs}
    assert len(runs) == 5 and parents["ingest-b"] == parents["ingest-c"] != parents["ingest-a"]
    pod("d")  # not started by KFP
    assert "VLMFLOW_KFP_RUN is not set" in caplog.text
    [alone] = store.search_runs(mlflow_store.experiment_ids(store), "attributes.run_name = 'ingest-d'")
    assert "mlflow.parentRunId" not in alone.data.tags


def test_a_step_without_a_tracking_address_warns_at_its_start(
    pod: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    pod("a", VLMFLOW_KFP_RUN="run-1", MLFLOW_TRACKING_URI="")
    assert "ingest: MLFLOW_TRACKING_URI is not set" in caplog.text and "ConfigMap vlmflow" in caplog.text
    caplog.clear()
    pod("b", VLMFLOW_KFP_RUN="run-1", MLFLOW_TRACKING_URI="", VLMFLOW_TRACKING="off")
    assert not caplog.text


def test_the_log_that_kfp_writes_is_not_an_output_of_the_step(pod: Callable[..., str], store: MlflowClient) -> None:
    pod("a", VLMFLOW_KFP_RUN="run-5")
    [step] = [run for run in runs_of(store, "run-5") if "vlmflow.step" in run.data.tags]
    assert [name for name in step.data.tags if name.startswith("output.")] == ["output.raw"]


def test_the_containers_arguments_have_no_placeholder_that_kfp_leaves_as_it_is() -> None:
    """KFP's launcher replaces only `{{$}}` and inputs and outputs; anything else reaches the step as it is written."""
    for step in step_cli.names():
        component = getattr(import_module(f"components.{step}.component"), step)
        arguments = component.component_spec.implementation.container.args
        assert [one for one in arguments if "{{" in str(one)] == ["{{$}}"], step
