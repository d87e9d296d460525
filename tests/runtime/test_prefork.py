"""The preforked process: a step in a fork behaves as in its own process, and ends with its caller."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from vlmflow.runtime.code_hash import ROOT

Start = Callable[[str], subprocess.Popen[str]]

_CALLER = """
import json, sys
from pathlib import Path
from vlmflow.runtime.prefork_client import PreforkedProcess

with PreforkedProcess(Path("prefork.log")) as process:
    codes = [process.run(["kfp.dsl.executor_main", *arguments]) for arguments in json.loads(sys.argv[1])]
print(codes)
"""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start steps of the module below in forks, one after the other; the argument names their functions."""
    (tmp_path / "steps_of_a_test.py").write_text(
        "import os, pathlib, time\n"
        "from vlmflow.errors import DataError\n"
        "def greet():\n    print(os.environ['GREETING'], pathlib.Path.cwd(), flush=True)\n"
        "def refuse():\n    raise DataError('no rows')\n"
        "def die():\n    os.kill(os.getpid(), 9)\n"
        "def sleep():\n    pathlib.Path('pid').write_text(str(os.getpid()))\n    time.sleep(600)\n"
    )

    def start_steps(functions: str) -> subprocess.Popen[str]:
        outputs = {"artifacts": {}, "outputFile": str(tmp_path / "task" / "executor_output.json")}
        given = json.dumps({"inputs": {"parameterValues": {}, "artifacts": {}}, "outputs": outputs})
        steps = [
            ["--module", "steps_of_a_test", "--function", function, "--executor_input", given]
            for function in functions.split()
        ]
        run = {"VLMFLOW_RUN": str(tmp_path / "run"), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
        return subprocess.Popen(
            [sys.executable, "-c", _CALLER, json.dumps(steps)],
            cwd=tmp_path,
            env={**os.environ, **run, "GREETING": "from the caller"},
            stdout=subprocess.PIPE,
            text=True,
        )

    return start_steps


def test_steps_have_their_callers_environment_and_its_output_and_exit_codes(start: Start, tmp_path: Path) -> None:
    out, _ = start("greet refuse die greet").communicate(timeout=120)
    lines = [line for line in out.splitlines() if line.strip()]
    assert lines[0] == lines[3] == f"from the caller {tmp_path}"
    assert lines[1] == "error: refuse: no rows"
    assert "ended by signal 9" in lines[2]
    assert lines[4] == str([0, 2, 128 + signal.SIGKILL, 0])


def test_a_step_ends_with_its_caller(start: Start, tmp_path: Path) -> None:
    caller = start("sleep")
    deadline = time.monotonic() + 120
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline and caller.poll() is None
        time.sleep(0.1)
    caller.kill()
    caller.communicate()
    forked = int((tmp_path / "pid").read_text())
    while psutil.pid_exists(forked):
        assert time.monotonic() < deadline
        time.sleep(0.1)
