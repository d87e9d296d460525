"""Shared by several test modules: the command line, calls in a new process, and one run of the end-to-end pipeline."""

import atexit
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.prefork import PRELOADED
from vlmflow.runtime.prefork_client import PREFORK_ADDRESS, PreforkedProcess
from vlmflow.runtime.process import limit_threads

limit_threads()  # as in every step: a process forked after torch has started threads can hang
os.environ["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"  # a run that lasts longer would have more metrics

# Longest first, so that no worker starts a long file when the other one is almost done.
LONGEST = ("tests/test_end_to_end", "tests/training", "tests/models/test_zoo", "tests/jobs", "tests/infra")

Run = Callable[..., subprocess.CompletedProcess[str]]
SHARED = ROOT.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first."""
    order = {part: position for position, part in enumerate(LONGEST)}

    def position(item: pytest.Item) -> int:
        return min((order[part] for part in order if item.nodeid.startswith(part)), default=len(order))

    items.sort(key=position)


def vlmflow(
    home: Path, *arguments: str, process: bool | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Call the command line with runs under `home`.

    Args:
        process: run it in a new process, as a user does, or in this one, which saves the imports. By default only
            commands that start processes run in a new one.
    """
    variables = {"VLMFLOW_HOME": str(home), "COLUMNS": "200", **environment}
    if process is None:
        process = arguments[0] in ("run", "serve", "ui", "data-ablation") or arguments[:2] == ("zoo", "check")
    if not process:
        return _in_this_process(arguments, variables)
    command = [str(Path(sys.executable).parent / "vlmflow"), *arguments]
    variables = {**os.environ, "PYTHONWARNINGS": "default", PREFORK_ADDRESS: _prefork_address(), **variables}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=580)


@cache
def _prefork_address() -> str:
    """Start the process from which the steps of every run of this test session are forked."""
    stack = ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    process = stack.enter_context(PreforkedProcess(Path(folder) / "prefork.log"))
    process.start()
    return process.address


def _in_this_process(arguments: tuple[str, ...], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    from pipelines import cli

    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
        warnings.simplefilter("default")
        patch.chdir(ROOT)
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["vlmflow", *arguments])
        patch.setattr(cli.console, "file", out)
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def executor_input(folder: Path, parameters: dict[str, str], inputs: dict[str, Path], outputs: list[str]) -> str:
    """Return the input that KFP gives to a step that writes `outputs` into `folder`."""

    def artifact(path: Path) -> dict[str, list[dict]]:
        kind = {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}
        return {"artifacts": [{"name": path.name, "uri": str(path), "type": kind}]}

    step_inputs = {"parameterValues": parameters, "artifacts": {name: artifact(path) for name, path in inputs.items()}}
    step_outputs = {"artifacts": {name: artifact(folder / name) for name in outputs}}
    return json.dumps(
        {"inputs": step_inputs, "outputs": {**step_outputs, "outputFile": str(folder / "executor_output.json")}}
    )


@pytest.fixture(scope="session")
def apart() -> Callable[..., Any]:
    """Call a function in a new process that has the large libraries imported, as a step runs.

    A training process that is forked from the test process may deadlock: it inherits locks that threads of other tests
    held at the fork.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(_call, dict(os.environ), function, *arguments).result()

    return call


def _call(environment: dict[str, str], function: Callable[..., Any], *arguments: Any) -> Any:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.clear()
    os.environ.update(environment)
    try:
        return function(*arguments)
    except ChildFailedError as error:
        raise RuntimeError(str(error)) from None  # torch's exception cannot be pickled


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one finished run of recipes/mini.yaml, shared by all workers of the test session."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the folder of the session, which contains one per worker
    home = root / "finished-run"
    with FileLock(root / "finished-run.lock"):
        if not (home / "first").exists():
            done = vlmflow(home, "run", "recipes/mini.yaml")
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            (home / "first").symlink_to((home / "latest").resolve())
    return (home / "first").resolve()


@pytest.fixture
def summary(finished_run: Path) -> dict:
    return json.loads((finished_run / "summary.json").read_text())
