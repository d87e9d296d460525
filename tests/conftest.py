"""What tests of several rooms share: a home of their own, and the whole life in miniature, run once."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.process import one_thread

one_thread()  # as every step has it: a process forked after torch has started threads hangs

LONGEST = ("tests/containers", "tests/test_life", "tests/training", "tests/trainer", "tests/infra", "tests/test_readme")

Run = Callable[..., subprocess.CompletedProcess[str]]
SHARED = ROOT.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process of several has one left when the others have ended."""
    order = {part: place for place, part in enumerate(LONGEST)}

    def place(item: pytest.Item) -> int:
        return min((order[part] for part in order if item.nodeid.startswith(part)), default=len(order))

    items.sort(key=place)


def vlmflow(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call the command line as a user does, with runs under `home`."""
    given = {**os.environ, "VLMFLOW_HOME": str(home), "PYTHONWARNINGS": "default", "COLUMNS": "200", **environment}
    command = [str(Path(sys.executable).parent / "vlmflow"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=580)


def executor_input(place: Path, parameters: dict[str, str], inputs: dict[str, Path], outputs: list[str]) -> str:
    """What KFP hands to a step that is to write `outputs` into the folder `place`."""

    def artifact(path: Path) -> dict[str, list[dict]]:
        kind = {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}
        return {"artifacts": [{"name": path.name, "uri": str(path), "type": kind}]}

    given = {"parameterValues": parameters, "artifacts": {name: artifact(path) for name, path in inputs.items()}}
    made = {"artifacts": {name: artifact(place / name) for name in outputs}}
    return json.dumps({"inputs": given, "outputs": {**made, "outputFile": str(place / "executor_output.json")}})


@pytest.fixture(scope="session")
def apart() -> Callable[..., Any]:
    """Call a function in a process of its own, as every step is: training processes forked from the tests' process,
    with the threads that other tests left in it, may wait forever for a lock that one of them held."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(_called, function, *arguments).result()

    return call


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        return function(*arguments)
    except ChildFailedError as error:
        raise RuntimeError(str(error)) from None  # torch's own cannot be handed over


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of recipes/mini.yaml."""
    home = tmp_path_factory.mktemp("home")
    done = vlmflow(home, "run", "recipes/mini.yaml")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return (home / "latest").resolve()


@pytest.fixture(scope="session")
def summary(finished_run: Path) -> dict:
    return json.loads((finished_run / "summary.json").read_text())
