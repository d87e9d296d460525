"""The life of a run on this machine: one at a time in a folder of runs, and the end of a killed one."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from pipelines import local_runner
from vlmflow.errors import SpaceError
from vlmflow.runtime.code_hash import ROOT
from vlmflow.tracking import mlflow_run, mlflow_store

ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}


def test_a_second_run_in_the_same_home_is_refused_and_leaves_the_link(tmp_path: Path) -> None:
    with local_runner._locked(tmp_path) as home:
        first = local_runner._new_run_folder(home)
        local_runner._point_latest_at(first)
        refused = pytest.raises(SpaceError, match=f"in use by the run of process {os.getpid()}; wait for its end")
        with refused, local_runner._locked(tmp_path):
            pass
    assert (tmp_path / "latest").resolve() == first
    with local_runner._locked(tmp_path):
        pass


def test_a_failed_step_is_logged_like_any_other_and_once(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    logged: list[str] = []
    reporter = local_runner.ConsoleReporter(
        tmp_path, Console(file=io.StringIO()), 2, lambda record: logged.append(record["label"])
    )
    for label, values in (
        ("ingest", {"status": "done", "cached": True}),
        ("gate", {"status": "failed", "error": "no"}),
    ):
        (tmp_path / "steps" / f"{label}.json").write_text(json.dumps({"label": label, **values}))
        reporter.report_finished()
    reporter.report_finished()
    assert logged == ["ingest", "gate"]


def test_the_mlflow_runs_of_a_killed_run_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("VLMFLOW_HOME", str(tmp_path))
    (tmp_path / "killed").mkdir()
    client = mlflow_store.client()
    tags = {local_runner.RUN_TAG: "killed"}
    run = client.create_run("1", run_name="end-to-end", tags=tags).info.run_id
    step = client.create_run("1", tags={"mlflow.parentRunId": run}).info.run_id
    elsewhere = client.create_run("1", tags={local_runner.RUN_TAG: "in another home"}).info.run_id
    local_runner._close_dead_runs(tmp_path)
    assert [client.get_run(one).info.status for one in (run, step, elsewhere)] == ["KILLED", "KILLED", "RUNNING"]
    assert mlflow_run.current_run().id is None


_LONG_RUN = """
import sys, time
from pathlib import Path
from rich.console import Console
from pipelines import cli, local_runner

def wait(*_):
    print("running", flush=True)
    time.sleep(600)

local_runner._run_in_folder = wait
sys.argv = ["vlmflow", "run", "recipes/mini.yaml"]
cli.main()
"""


def test_sigterm_ends_a_run_as_ctrl_c_does(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _LONG_RUN],
        cwd=ROOT,
        env={**ENVIRONMENT, "VLMFLOW_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 120
    while "running" not in process.stdout.readline():
        assert time.monotonic() < deadline and process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGTERM)
    assert "stopped; the same command continues" in " ".join(out.split())
