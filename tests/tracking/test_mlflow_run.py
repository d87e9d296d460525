"""MLflow runs of steps: nesting, statuses, the local store, and servers that do not answer."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmflow.errors import ServiceError, SpaceError
from vlmflow.tracking import local_store, mlflow_run, mlflow_store, step_run


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "VLMFLOW_TRACKING"):
            patch.delenv(name, raising=False)
        patch.setenv("VLMFLOW_HOME", str(folder))
        yield folder


def test_tracking_off_logs_nothing_and_does_not_import_mlflow(tmp_path: Path) -> None:
    code = """
import sys
from vlmflow.tracking import mlflow_run
with mlflow_run.start_run("align", params={"a": 1}) as run:
    run.log_metrics({"x": 1.0}); run.set_tags({"t": 1}); run.log_artifact("none"); run.log_params({"p": 1})
    assert run.id is None and mlflow_run.current_run().id is None
assert "mlflow" not in sys.modules
"""
    environment = {**os.environ, "VLMFLOW_TRACKING": "off", "VLMFLOW_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not any(tmp_path.iterdir())


def test_a_steps_run_is_nested_and_stores_metrics_tags_and_artifacts(home: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with mlflow_run.start_run("end-to-end", params={"curate": {"min_side": 16}}) as parent:
        with mlflow_run.start_run("align", parent_id=parent.id, tags={"dataset": "abc", "none": None}) as step:
            assert mlflow_run.current_run() is step
            step.log_metrics({"accuracy": 0.25}, step=3)
            step.log_artifact(tmp_path / "note.txt", "notes")
        assert mlflow_run.current_run() is parent
    client = mlflow_store.client()
    outer, inner = client.get_run(str(parent.id)), client.get_run(str(step.id))
    assert outer.data.params == {"curate.min_side": "16"}
    assert inner.data.tags["mlflow.parentRunId"] == parent.id and inner.data.tags["dataset"] == "abc"
    assert "none" not in inner.data.tags
    assert inner.data.metrics == {"accuracy": 0.25} and inner.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(str(step.id), "notes")] == ["notes/note.txt"]
    assert (home / "mlflow.db").is_file() and Path(str(inner.info.artifact_uri).removeprefix("file://")).is_relative_to(
        home
    )
    assert "MLFLOW_TRACKING_URI" not in os.environ and "MLFLOW_RUN_ID" not in os.environ


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_with_an_exception_has_the_matching_status(error: type[BaseException], status: str) -> None:
    with pytest.raises(error), mlflow_run.start_run("align") as run:
        raise error
    assert mlflow_store.client().get_run(str(run.id)).info.status == status
    assert mlflow_run.current_run().id is None


def test_a_trainer_in_this_process_logs_into_the_run_and_leaves_it_open(tmp_path: Path) -> None:
    import torch
    from transformers import Trainer, TrainingArguments

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": ((self.weight * x - labels) ** 2).mean()}

    rows = [{"x": torch.tensor([1.0]), "labels": torch.tensor([2.0])}] * 8
    with mlflow_run.start_run("pretrain") as run:
        options = TrainingArguments(
            str(tmp_path),
            max_steps=3,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            report_to=["mlflow"],
            dataloader_pin_memory=False,
        )
        Trainer(Line(), options, train_dataset=rows).train()  # type: ignore[arg-type]
        run.log_metrics({"after": 1.0})
    client = mlflow_store.client()
    assert len(client.get_metric_history(str(run.id), "loss")) == 3
    assert client.get_run(str(run.id)).data.metrics["after"] == 1.0
    assert [r.info.run_id for r in client.search_runs(["1"], max_results=1)] == [run.id]  # no second run was made


@pytest.mark.parametrize("hangs", [False, True])
def test_an_unreachable_server_fails_before_the_work(monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    monkeypatch.setattr(mlflow_store, "_PROBE_SECONDS", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if hangs:
            server.listen()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        worked, start = False, time.monotonic()
        unreachable = pytest.raises(ServiceError, match=f"MLflow at {address}: .*start the server")
        with unreachable as caught, mlflow_run.start_run("align"):
            worked = True
    assert not worked and time.monotonic() - start < 5 and "\n" not in str(caught.value)


def start_server(server: socket.socket, statuses: list[int]) -> threading.Thread:
    """Answer one connection with each status, then stop."""

    def serve() -> None:
        for status in statuses:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_server_that_is_not_ready_is_probed_again(caplog: pytest.LogCaptureFixture) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        caplog.at_level("WARNING", logger="vlmflow.tracking.mlflow_store"),
    ):
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        thread = start_server(server, [503, 502, 200])
        mlflow_store._wait_for_server(address, wait=60.0)
        thread.join()
    assert [record.getMessage().startswith(f"MLflow at {address}: ") for record in caplog.records] == [True, True]
    assert "waiting up to 60 s (VLMFLOW_MLFLOW_WAIT)" in caplog.text


@pytest.mark.parametrize("status", [200, 403, 404])
def test_a_server_that_answers_is_probed_once(status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = start_server(server, [status])
        mlflow_store._wait_for_server(f"http://127.0.0.1:{server.getsockname()[1]}", wait=60.0)
        thread.join()


def test_an_invalid_wait_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMFLOW_MLFLOW_WAIT", "5m")
    with pytest.raises(ServiceError, match="VLMFLOW_MLFLOW_WAIT='5m': not a number of seconds"):
        mlflow_store.client()


def test_a_store_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLMFLOW_HOME", str(tmp_path / "file"))
    with pytest.raises(SpaceError, match="cannot write.*VLMFLOW_HOME"), mlflow_run.start_run("align"):
        pass


@pytest.fixture
def used(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A copy of a folder of runs, at a place with special characters, and a run in it with an artifact."""
    (tmp_path / "links").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "links"))
    (tmp_path / "note.txt").write_text("hello")
    with mlflow_run.start_run("align") as run:
        run.log_artifact(tmp_path / "note.txt")
    copy = tmp_path / "é %20 ?[v2] #x"
    shutil.copytree(home, copy)
    return copy, str(run.id)


def test_a_moved_home_with_any_name_has_its_artifacts_and_takes_new_ones(used: tuple[Path, str]) -> None:
    folder, old = used
    client = mlflow_store.client(folder)
    assert [file.path for file in client.list_artifacts(old)] == ["note.txt"]
    (folder / "mlartifacts" / old / "artifacts" / "note.txt").unlink()
    assert not client.list_artifacts(old)  # it was not the file in the other folder
    with mlflow_run.start_run("align", root=folder) as run:
        run.log_artifact(folder / "mlflow.db")
    assert (folder / "mlartifacts" / str(run.id) / "artifacts" / "mlflow.db").exists()


def test_a_home_that_cannot_be_written_is_read_from_a_copy(
    used: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = used
    monkeypatch.setattr(local_store, "is_writable", lambda file: not file.is_relative_to(folder))
    monkeypatch.setattr(mlflow_store, "_reads_only", False)
    (folder / ".mlflow.lock").unlink()
    mlflow_store.read_only()
    assert [file.path for file in mlflow_store.client(folder).list_artifacts(run)] == ["note.txt"]
    assert not (folder / ".mlflow.lock").exists()


def test_a_database_that_was_not_finished_is_created_again(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db.partial").write_text("half")
    with mlflow_run.start_run("align", root=tmp_path):
        assert (tmp_path / "mlflow.db").exists() and not (tmp_path / "mlflow.db.partial").exists()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("localhost:5000", "has no protocol; write http://host:port"),
        ("mlruns", "has no protocol"),
        ("mssql+pymssql://host/db", "the Python package 'pymssql' is missing"),
    ],
)
def test_an_unusable_address_is_one_line(address: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(ServiceError, match=reason) as error:
        mlflow_store.client()
    assert "\n" not in str(error.value)


def test_two_processes_can_create_the_store_at_the_same_time(tmp_path: Path) -> None:
    code = "from vlmflow.tracking import mlflow_run\nwith mlflow_run.start_run('a') as run: run.log_metrics({'x': 1.0})"
    environment = {**os.environ, "VLMFLOW_HOME": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    runs = mlflow_store.client(tmp_path).search_runs(["1"])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]


def test_a_step_logs_its_curves_and_datasets_and_gives_the_pipeline_its_scores(tmp_path: Path) -> None:
    contents: dict[str, dict[str, object]] = {
        "pairs": {"schema": "pairs", "rows": 7, "step": "curate"},
        "model": {"curve": [{"step": 5, "loss": 2.0, "rewards/margins": 0.5}]},
        "control": {"curve": [{"step": 5, "loss": 3.0, "grad_norm": 1.5}]},
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").write_text(json.dumps(content))
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/scores.json").write_text(
        json.dumps({"stage": "align", "capabilities": {"read lines": {"value": 0.5}}})
    )
    record = {
        "label": "align",
        "step": "align",
        "status": "done",
        "inputs": {"pairs": "c" * 64, "start": "s" * 64},
        "input_paths": {"pairs": str(tmp_path / "pairs"), "start": str(tmp_path / "model")},
        "outputs": {name: {"path": str(tmp_path / name)} for name in ("model", "control", "scores")},
    }
    with mlflow_run.start_run("end-to-end") as pipeline:
        step = step_run.log_step(record, pipeline.id)
        step_run.log_step({**record, "label": "gate", "step": "gate"}, pipeline.id)
    client = mlflow_store.client()
    run, parent = client.get_run(str(step)), client.get_run(str(pipeline.id))
    assert run.data.metrics == {
        "loss": 2.0, "rewards/margins": 0.5, "control/loss": 3.0, "control/grad_norm": 1.5, "read_lines": 0.5
    }  # fmt: skip
    assert parent.data.metrics == {"align/read_lines": 0.5, "read_lines": 0.5}
    for logged in (run, parent):
        assert logged.inputs is not None
        (given,) = logged.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == ("curate pairs", "c" * 36)
        assert logged.data.tags["mlflow.source.git.commit"]


def test_a_failed_step_has_a_run_with_its_error() -> None:
    error = "worse than the champion"
    record = {"label": "gate", "step": "gate", "status": "failed", "error": error, "input_paths": {}}
    with mlflow_run.start_run("end-to-end") as pipeline:
        step = step_run.log_step(record, pipeline.id)
    run = mlflow_store.client().get_run(str(step))
    assert run.info.status == "FAILED" and run.data.tags["mlflow.note.content"] == error
