"""Run a pipeline on this machine by kfp.local, with a story that a person can follow."""

import contextlib
import io
import json
import logging
import os
import queue
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from kfp import local
from rich.console import Console

from pipelines.summary import summarise
from vlmflow.config import recipes as recipes
from vlmflow.errors import SpaceError, VlmflowError
from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.prefork import ADDRESS
from vlmflow.tracking import mlflow_run, step_run


class StepFailed(VlmflowError):
    """A step ended by its user's mistake; its own line says which."""


def run(
    pipeline: Callable[..., Any],
    sections: dict[str, Any],
    console: Console,
    containers: bool = False,
    **parameters: str,
) -> Path:
    """Run `pipeline` with the recipe `sections` and its further `parameters`; returns the run's folder.

    Args:
        containers: each step in its container, instead of a process.

    Raises:
        StepFailed: a step refused its input. RuntimeError: a step broke; the run's log has the traceback.
    """
    folder = _folder(mlflow_run.home())
    recipe = recipes.dump(sections)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    tasks = pipeline.pipeline_spec.root.dag.tasks.values()  # type: ignore[attr-defined]
    total = 0 if any(task.WhichOneof("iterator") for task in tasks) else len(tasks)
    started = time.monotonic()
    warm = contextlib.nullcontext("") if containers else _warm(folder)
    with warm as address, _environment(folder, address):
        if containers:
            from pipelines.containers import runner

            local.init(runner=runner(folder, sections), pipeline_root=str(folder))
        else:
            local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(folder))
        _follow(pipeline, sections, folder, console, total, {"recipe": recipe, **parameters})
    summary = summarise(folder, seconds=time.monotonic() - started)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return folder


def _follow(pipeline: Any, sections: Any, folder: Path, console: Console, total: int, given: dict[str, str]) -> None:
    """Run the pipeline, and tell and track how it goes."""
    with _tracked(folder, sections) as finished:
        narrator = Narrator(folder, console, total, finished)
        log = (folder / "run.log").open("w", encoding="utf-8")
        with log as narrator.log, contextlib.redirect_stdout(narrator), contextlib.redirect_stderr(narrator):
            try:
                pipeline(**given)
                narrator.catch_up()
            except RuntimeError as error:
                narrator.catch_up()
                if "outputs" in (record := _failed(folder)):
                    finished(record)  # a refusal is logged with its report, as any step
                raise _failure(record, folder, error) from error


def _folder(home: Path) -> Path:
    """A new run's folder, `latest` pointing at it; half-written outputs of dead runs go."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        for left in home.glob("*/*/*.partial"):
            owner = left.parent.parent / "pid"
            if not (owner.exists() and Path(f"/proc/{owner.read_text()}").exists()):
                shutil.rmtree(left, ignore_errors=True)
        folder = home / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        folder.mkdir()
        (folder / "pid").write_text(str(os.getpid()))
        link = folder / "latest"
        link.symlink_to(folder.name)
        link.replace(home / "latest")  # in one move: another run may be starting beside us
    except OSError as error:
        raise SpaceError(f"{home}: cannot be written: {error.strerror}; make room, or set VLMFLOW_HOME") from None
    return folder


def _failed(folder: Path) -> dict[str, Any]:
    """The record of the step that ended by its user's mistake; empty where there is none."""
    for file in (folder / "steps").glob("*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["status"] == "failed" and record.get("users"):
            return record
    return {}


def _failure(record: dict[str, Any], folder: Path, error: RuntimeError) -> Exception:
    if not record:
        return RuntimeError(f"{error}; the traceback is in {folder / 'run.log'}")
    pages = [output["path"] for output in record.get("outputs", {}).values() if step_run.is_page(Path(output["path"]))]
    return StepFailed(f"{record['label']}: {record['error']}" + "".join(f"; see {page}" for page in pages))


@contextlib.contextmanager
def _warm(folder: Path) -> Iterator[str]:
    """A process with everything imported, which the steps are forks of; yields its address."""
    with (
        tempfile.TemporaryDirectory() as place,  # a run's folder can be too long a path for a socket
        socket.socket(socket.AF_UNIX) as listener,
        (folder / "warm.log").open("w") as log,
    ):
        address = f"{place}/socket"
        listener.bind(address)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "vlmflow.runtime.prefork", str(listener.fileno())],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
        )
        listener.close()  # if it dies, the steps' calls are refused, and they import for themselves
        try:
            yield address
        finally:
            process.communicate()


@contextlib.contextmanager
def _environment(folder: Path, warm: str) -> Iterator[None]:
    """Steps find this interpreter, this repository and the run's folder."""
    given = {
        ADDRESS: warm,
        "VLMFLOW_RUN": str(folder),
        "VLMFLOW_HOME": str(folder.parent),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Narrator(io.TextIOBase):
    """Takes what kfp.local prints: all of it to the run's log, the story to the terminal.

    total: how many tasks there are, or 0 where a loop makes that unknown.
    """

    log: io.TextIOBase

    def __init__(self, folder: Path, console: Console, total: int, finished: Callable[[dict[str, Any]], None]):
        self.folder, self.console, self.total, self.finished = folder, console, total, finished
        self.place, self.rest = 0, ""
        self.told: set[str] = set()

    def write(self, text: str) -> int:
        """Log `text`, and tell each whole line of it."""
        self.log.write(text)
        self.log.flush()
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self._tell(re.sub(r"\x1b\[\d+m", "", line).strip())
        return len(text)

    def _tell(self, line: str) -> None:
        if match := re.search(r"Executing task '([\w-]+)'", line):
            self.place += 1
            total = f"/{self.total}" if self.total else ""
            self.console.print(f"[bold cyan]{self.place:>2}{total}[/] [bold]{match[1]}[/]")
        elif re.search(r"Task '([\w-]+)' finished with status SUCCESS", line):
            self.catch_up()
        elif match := re.match(r"\d\d:\d\d:\d\d (.*)", line):
            self.console.print(f"      [dim]{match[1]}[/]", highlight=False, markup=True)

    def catch_up(self) -> None:
        """Tell of each step that has ended well, once; of two that run side by side kfp.local may say only one."""
        for file in sorted((self.folder / "steps").glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["status"] != "done" or record["label"] in self.told:
                continue
            self.told.add(record["label"])
            took = "unchanged" if record["cached"] else f"{record['seconds']:.0f} s, {record['peak_mb']} MB"
            self.console.print(f"      [green]✓[/] {record['label']} ({took})")
            self.finished(record)


@contextlib.contextmanager
def _tracked(folder: Path, sections: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """The pipeline's MLflow run, and below it one for each step that ends; written beside the work."""
    if not mlflow_run.enabled():
        yield lambda record: None
        return
    work: queue.Queue[dict[str, Any] | None] = queue.Queue()
    problems: list[BaseException] = []
    mlflow_run.client()  # a server that is gone is told before the first step, not after the last
    tags = {"vlmflow.run": folder.name, "vlmflow.recipe": sections.get("title", "")}
    with mlflow_run.run(f"life {folder.name}", params=sections, tags=tags) as parent:
        (folder / "mlflow_run_id").write_text(parent.id or "")

        def log() -> None:
            while (record := work.get()) is not None:
                try:
                    _log_step(folder, record, parent.id)
                except BaseException as error:  # told at the end, in the thread that can be heard
                    problems.append(error)
                    return

        thread = threading.Thread(target=log, daemon=True)
        thread.start()
        try:
            yield work.put
        finally:
            work.put(None)
            thread.join()
        if problems:
            raise problems[0]
        report = folder / "report" / "report"
        if report.exists():
            page = shutil.copy2(report, folder / "report.html")
            parent.log_artifact(page)


def _log_step(folder: Path, record: dict[str, Any], parent: str | None) -> None:
    """Log the step's record, and write down in it which run that is."""
    here = step_run.log(record, parent)
    (folder / "steps" / f"{record['label']}.json").write_text(
        json.dumps({**record, "mlflow_run_id": here}, indent=1), encoding="utf-8"
    )


logging.getLogger("kfp").setLevel(logging.WARNING)
