"""Run a pipeline on this machine with kfp.local, and report its progress on the terminal."""

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
from vlmflow.runtime.prefork_client import PREFORK_ADDRESS
from vlmflow.tracking import mlflow_run, mlflow_store, step_run


class StepFailed(VlmflowError):
    """A step failed because of a user's mistake; the message is the step's own error line."""


def run(
    pipeline: Callable[..., Any],
    sections: dict[str, Any],
    console: Console,
    containers: bool = False,
    **parameters: str,
) -> Path:
    """Run `pipeline` with the recipe `sections` and further `parameters`; return the run's folder.

    Args:
        containers: run each step in its container instead of a process.

    Raises:
        StepFailed: a step rejected its input. RuntimeError: a step crashed; the traceback is in the run's log.
    """
    folder = _new_run_folder(mlflow_store.home())
    recipe = recipes.dump(sections)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    tasks = pipeline.pipeline_spec.root.dag.tasks.values()  # type: ignore[attr-defined]
    total = 0 if any(task.WhichOneof("iterator") for task in tasks) else len(tasks)
    started = time.monotonic()
    given = os.environ.get(PREFORK_ADDRESS)
    prefork = contextlib.nullcontext(given or "") if given or containers else preforked_process(folder)
    with prefork as address, _environment(folder, address):
        if containers:
            from pipelines.containers import runner

            local.init(runner=runner(folder, sections), pipeline_root=str(folder))
        else:
            local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(folder))
        _run_pipeline(pipeline, sections, folder, console, total, {"recipe": recipe, **parameters})
    summary = summarise(folder, seconds=time.monotonic() - started)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return folder


def _run_pipeline(
    pipeline: Any, sections: Any, folder: Path, console: Console, total: int, given: dict[str, str]
) -> None:
    """Run the pipeline while reporting on the console and in MLflow."""
    with _tracking_run(folder, sections) as finished:
        reporter = ConsoleReporter(folder, console, total, finished)
        log = (folder / "run.log").open("w", encoding="utf-8")
        with log as reporter.log, contextlib.redirect_stdout(reporter), contextlib.redirect_stderr(reporter):
            try:
                pipeline(**given)
                reporter.report_finished()
            except RuntimeError as error:
                reporter.report_finished()
                if "outputs" in (record := _failed_record(folder)):
                    finished(record)  # a failed step is logged with its outputs, like any other
                raise _as_exception(record, folder, error) from error


def _new_run_folder(home: Path) -> Path:
    """Create the folder of a new run, point `latest` at it, and delete partial outputs of dead runs."""
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
        link.replace(home / "latest")  # atomic: another run may start at the same time
    except OSError as error:
        raise SpaceError(f"{home}: cannot be written: {error.strerror}; make room, or set VLMFLOW_HOME") from None
    return folder


def _failed_record(folder: Path) -> dict[str, Any]:
    """Return the record of the step that failed because of a user's mistake; empty if there is none."""
    for file in (folder / "steps").glob("*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["status"] == "failed" and record.get("users"):
            return record
    return {}


def _as_exception(record: dict[str, Any], folder: Path, error: RuntimeError) -> Exception:
    if not record:
        return RuntimeError(f"{error}; the traceback is in {folder / 'run.log'}")
    pages = [
        output["path"] for output in record.get("outputs", {}).values() if step_run.is_html_page(Path(output["path"]))
    ]
    return StepFailed(f"{record['label']}: {record['error']}" + "".join(f"; see {page}" for page in pages))


@contextlib.contextmanager
def preforked_process(folder: Path) -> Iterator[str]:
    """Start a process with the large libraries imported, from which the steps are forked; yield its address.

    folder: its output is written to prefork.log there.
    """
    with (
        tempfile.TemporaryDirectory() as place,  # the path of a run's folder may be too long for a socket
        socket.socket(socket.AF_UNIX) as listener,
        (folder / "prefork.log").open("w") as log,
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
        listener.close()  # if the process dies, connections are refused and steps import the libraries themselves
        try:
            yield address
        finally:
            process.communicate()


@contextlib.contextmanager
def _environment(folder: Path, prefork: str) -> Iterator[None]:
    """Set the environment of the steps: this interpreter, this repository and the run's folder."""
    given = {
        PREFORK_ADDRESS: prefork,
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


class ConsoleReporter(io.TextIOBase):
    """Receives what kfp.local prints: writes everything to the run's log and the progress to the terminal.

    total: number of tasks, or 0 where a loop makes it unknown.
    """

    log: io.TextIOBase

    def __init__(self, folder: Path, console: Console, total: int, finished: Callable[[dict[str, Any]], None]):
        self.folder, self.console, self.total, self.finished = folder, console, total, finished
        self.started, self.rest = 0, ""
        self.reported: set[str] = set()

    def write(self, text: str) -> int:
        """Log `text` and report each complete line."""
        self.log.write(text)
        self.log.flush()
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self._report(re.sub(r"\x1b\[\d+m", "", line).strip())
        return len(text)

    def _report(self, line: str) -> None:
        if match := re.search(r"Executing task '([\w-]+)'", line):
            self.started += 1
            total = f"/{self.total}" if self.total else ""
            self.console.print(f"[bold cyan]{self.started:>2}{total}[/] [bold]{match[1]}[/]")
        elif re.search(r"Task '([\w-]+)' finished with status SUCCESS", line):
            self.report_finished()
        elif match := re.match(r"\d\d:\d\d:\d\d (.*)", line):
            self.console.print(f"      [dim]{match[1]}[/]", highlight=False, markup=True)

    def report_finished(self) -> None:
        """Report each finished step once; of two parallel steps kfp.local may announce only one."""
        for file in sorted((self.folder / "steps").glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["status"] != "done" or record["label"] in self.reported:
                continue
            self.reported.add(record["label"])
            took = "unchanged" if record["cached"] else f"{record['seconds']:.0f} s, {record['peak_mb']} MB"
            self.console.print(f"      [green]✓[/] {record['label']} ({took})")
            self.finished(record)


@contextlib.contextmanager
def _tracking_run(folder: Path, sections: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open the pipeline's MLflow run; a background thread adds a nested run for each finished step."""
    if not mlflow_store.enabled():
        yield lambda record: None
        return
    work: queue.Queue[dict[str, Any] | None] = queue.Queue()
    problems: list[BaseException] = []
    mlflow_store.client()  # fail before the first step if the server is unreachable
    tags = {"vlmflow.run": folder.name, "vlmflow.recipe": sections.get("title", "")}
    with mlflow_run.start_run(
        f"{sections.get('pipeline', 'end-to-end')} {folder.name}", params=sections, tags=tags
    ) as parent:
        (folder / "mlflow_run_id").write_text(parent.id or "")

        def log() -> None:
            while (record := work.get()) is not None:
                try:
                    _log_step(folder, record, parent.id)
                except BaseException as error:  # raised at the end, in the main thread
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
    """Log the step's record to MLflow and add the run's id to it."""
    here = step_run.log_step(record, parent)
    (folder / "steps" / f"{record['label']}.json").write_text(
        json.dumps({**record, "mlflow_run_id": here}, indent=1), encoding="utf-8"
    )


logging.getLogger("kfp").setLevel(logging.WARNING)
