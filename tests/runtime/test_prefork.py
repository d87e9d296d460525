"""The preforked process: a step in a fork behaves as in its own process, and ends with its caller."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.prefork_client import PREFORK_ADDRESS, run_in_prefork

StartStep = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as listener:
        path = tmp_path / "s"
        listener.bind(str(path))
        listener.listen()
        command = [sys.executable, "-m", "vlmflow.runtime.prefork", str(listener.fileno())]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, pass_fds=[listener.fileno()]
        )
    yield str(path)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.fixture
def start(tmp_path: Path, address: str) -> StartStep:
    """Start a step in its own process, as kfp.local does."""
    run = {"VLMFLOW_RUN": str(tmp_path / "run")}

    def start_step(function: str, module: str) -> subprocess.Popen[str]:
        outputs = {"artifacts": {}, "outputFile": str(tmp_path / "task" / "executor_output.json")}
        inputs = {"parameterValues": {}, "artifacts": {}}
        return subprocess.Popen(
            [sys.executable, "-m", "vlmflow.runtime.step_runner", "kfp.dsl.executor_main", "--module", module]
            + ["--function", function, "--executor_input", json.dumps({"inputs": inputs, "outputs": outputs})],
            cwd=tmp_path,
            env={**os.environ, **run, PREFORK_ADDRESS: address, "PYTHONPATH": str(ROOT), "GREETING": "from the caller"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    (tmp_path / "steps_of_a_test.py").write_text(
        "import os, pathlib, time\n"
        "from vlmflow.errors import DataError\n"
        "def greet():\n    print(os.environ['GREETING'], pathlib.Path.cwd(), flush=True)\n"
        "def refuse():\n    raise DataError('no rows')\n"
        "def die():\n    os.kill(os.getpid(), 9)\n"
        "def sleep():\n    pathlib.Path('pid').write_text(str(os.getpid()))\n    time.sleep(600)\n"
    )
    return start_step


def test_a_step_has_its_callers_environment_folder_and_output(start: StartStep, tmp_path: Path) -> None:
    step = start("greet", "steps_of_a_test")
    out, err = step.communicate(timeout=120)
    assert step.returncode == 0, err
    assert out.strip() == f"from the caller {tmp_path}"


def test_a_user_error_is_one_line_and_exit_code_2(start: StartStep) -> None:
    step = start("refuse", "steps_of_a_test")
    _, err = step.communicate(timeout=120)
    assert step.returncode == 2
    assert err.strip() == "error: refuse: no rows"


def test_a_killed_step_is_reported(start: StartStep) -> None:
    step = start("die", "steps_of_a_test")
    _, err = step.communicate(timeout=120)
    assert step.returncode == 128 + signal.SIGKILL
    assert "ended by signal 9" in err


def test_a_step_ends_with_its_caller(start: StartStep, tmp_path: Path) -> None:
    step = start("sleep", "steps_of_a_test")
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline and step.poll() is None
        time.sleep(0.1)
    step.kill()
    step.communicate()
    forked = int((tmp_path / "pid").read_text())
    while psutil.pid_exists(forked):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_without_a_preforked_process_there_is_no_exit_code(tmp_path: Path) -> None:
    assert run_in_prefork(str(tmp_path / "missing"), []) is None
