"""Run a pipeline on this machine with kfp.local, and report its progress on the terminal."""

import contextlib
import fcntl
import functools
import io
import json
import logging
import os
import queue
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from kfp import local
from kfp.dsl.graph_component import GraphComponent
from kfp.local import subprocess_task_handler
from kfp.local.status import Status
from rich.console import Console
from rich.markup import escape

from pipelines.flow import sections_read
from pipelines.summary import summarise
from vlmflow.config import recipes as recipes
from vlmflow.config.sections import explain_absence
from vlmflow.errors import SpaceError, VlmflowError
from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.local_step import LocalStep
from vlmflow.runtime.prefork_client import PREFORK_ADDRESS, PreforkedProcess
from vlmflow.runtime.step_runner import parse_task
from vlmflow.tracking import mlflow_run, mlflow_store, step_run

RUN_TAG = "vlmflow.run"  # the tag of a pipeline's MLflow run with the name of its folder


class StepFailed(VlmflowError):
    """A step failed because of a user's mistake; the message is the step's own error line."""


def run(
    pipeline: GraphComponent,
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
    with _locked(mlflow_store.home()) as home:
        folder = _new_run_folder(home)
        try:
            return _run_in_folder(folder, pipeline, sections, console, containers, parameters)
        except KeyboardInterrupt:
            console.print(f"stopped; the same command continues. Log: {folder / 'run.log'}", markup=False)
            raise


def _run_in_folder(
    folder: Path,
    pipeline: GraphComponent,
    sections: dict[str, Any],
    console: Console,
    containers: bool,
    parameters: dict[str, str],
) -> Path:
    recipe = recipes.dump(sections)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    for line in explain_absence(sections, sections_read(pipeline)):
        console.print(line, style="yellow", markup=False)
    tasks = pipeline.pipeline_spec.root.dag.tasks.values()
    total = 0 if any(task.WhichOneof("iterator") for task in tasks) else len(tasks)
    started = time.monotonic()
    given = os.environ.get(PREFORK_ADDRESS, "")
    with PreforkedProcess(folder / "prefork.log", given) as prefork, _environment(folder):
        if containers:
            from pipelines.containers import runner

            local.init(runner=runner(folder, sections), pipeline_root=str(folder))
        else:
            local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(folder))
            subprocess_task_handler.SubprocessTaskHandler = functools.partial(StepTaskHandler, folder, prefork)
        _run_pipeline(pipeline, sections, folder, console, total, {"recipe": recipe, **parameters})
    summary = summarise(folder, seconds=time.monotonic() - started)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return folder


def _run_pipeline(
    pipeline: Any, sections: Any, folder: Path, console: Console, total: int, given: dict[str, str]
) -> None:
    """Run the pipeline while reporting on the console and in MLflow."""
    with _tracking_run(folder, sections) as finished:
        _point_latest_at(folder)  # not before: a run that cannot start leaves the link to the last one
        reporter = ConsoleReporter(folder, console, total, finished)
        log = (folder / "run.log").open("w", encoding="utf-8")
        with log as reporter.log, contextlib.redirect_stdout(reporter), contextlib.redirect_stderr(reporter):
            try:
                pipeline(**given)
                reporter.report_finished()
            except RuntimeError as error:
                reporter.report_finished()
                raise _as_exception(_failed_record(folder), folder, error) from error


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[Path]:
    """Yield `home`, to which no other run has access in the body.

    Raises:
        SpaceError: another run uses it, or it cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / ".run.lock").open("a+")
    except OSError as error:
        raise _not_writable(home, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise SpaceError(
                f"{home}: is in use by the run of process {lock.read().strip()}; wait for its end, or set VLMFLOW_HOME"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield home


def _new_run_folder(home: Path) -> Path:
    """Create the folder of a new run, and delete partial outputs of dead runs."""
    try:
        for left in home.glob("*/*/*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        folder = home / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        folder.mkdir()
    except OSError as error:
        raise _not_writable(home, error) from None
    return folder


def _point_latest_at(folder: Path) -> None:
    link = folder / "latest"
    link.symlink_to(folder.name)
    link.replace(folder.with_name("latest"))


def _not_writable(home: Path, error: OSError) -> SpaceError:
    return SpaceError(f"{home}: cannot be written: {error.strerror}; make room, or set VLMFLOW_HOME")


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
def _environment(folder: Path) -> Iterator[None]:
    """Set the environment of the steps: this interpreter, this repository and the run's folder."""
    given = {
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


class StepTaskHandler:
    """Takes a step from the step cache, in this process, or runs it in a fork of the preforked process.

    kfp.local's own handler starts a process for every step, which takes seconds even if the step is unchanged.
    """

    def __init__(self, folder: Path, prefork: PreforkedProcess, full_command: list[str], **_: Any):
        self.folder, self.prefork = folder, prefork
        self.arguments = full_command[3:]  # after `python -m vlmflow.runtime.step_runner`

    def run(self) -> Status:
        """Run the step."""
        task = parse_task(self.arguments)
        step = LocalStep(task, self.folder)
        try:
            with step.failure_recorded():
                if step.restore():
                    return Status.SUCCESS
        except VlmflowError as error:
            print(f"error: {task.function}: {error}")  # noqa: T201  into the run's log
            return Status.FAILURE
        return Status.FAILURE if self.prefork.run(self.arguments) else Status.SUCCESS


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
            self.console.print(f"      [dim]{escape(match[1])}[/]", highlight=False, markup=True)

    def report_finished(self) -> None:
        """Report each finished step once, also a failed one; of two parallel steps kfp.local may announce only one."""
        for file in sorted((self.folder / "steps").glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["status"] not in ("done", "failed") or record["label"] in self.reported:
                continue
            self.reported.add(record["label"])
            self.finished(record)
            if record["status"] == "failed":
                continue  # its error ends the run, and is printed there
            took = "unchanged" if record["cached"] else f"{record['seconds']:.0f} s, {record['peak_mb']} MB"
            mark, took = ("-", "left out") if "left_out" in record else ("✓", took)
            self.console.print(f"      [green]{mark}[/] {record['label']} ({took})")


@contextlib.contextmanager
def _tracking_run(folder: Path, sections: dict[str, Any]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open the pipeline's MLflow run; a background thread adds a nested run for each finished step."""
    if not mlflow_store.enabled():
        yield lambda record: None
        return
    work: queue.Queue[dict[str, Any] | None] = queue.Queue()
    problems: list[BaseException] = []
    _close_dead_runs(folder.parent)  # fails before the first step if the server is unreachable
    tags = {RUN_TAG: folder.name, "vlmflow.recipe": sections.get("title", "")}
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


def _close_dead_runs(home: Path) -> None:
    """Set the MLflow runs of killed runs of `home`, which is locked, to KILLED."""
    client = mlflow_store.client()
    with mlflow_store.service_errors():
        left = client.search_runs([mlflow_store.experiment_id(client)], "attributes.status = 'RUNNING'")
        dead = {run.info.run_id for run in left if (name := run.data.tags.get(RUN_TAG)) and (home / name).is_dir()}
        for run in left:
            if run.info.run_id in dead or run.data.tags.get("mlflow.parentRunId") in dead:
                client.set_terminated(run.info.run_id, "KILLED")


def _log_step(folder: Path, record: dict[str, Any], parent: str | None) -> None:
    """Log the step's record to MLflow and add the run's id to it."""
    here = step_run.log_step(record, parent)
    partial = folder / "steps" / f".{record['label']}.partial"
    partial.write_text(json.dumps({**record, "mlflow_run_id": here}, indent=1), encoding="utf-8")
    partial.replace(folder / "steps" / f"{record['label']}.json")  # atomic: the main thread may be reading it


logging.getLogger("kfp").setLevel(logging.WARNING)
