"""Run one step: what a container of a pipeline starts, and what the laptop starts in a process.

    python -m vlmflow.runtime.step_runner kfp.dsl.executor_main --module components.curate.component \\
        --function curate --executor_input '{...}'

KFP's executor calls the function with its artifacts. Around it stand four things that every step needs: a
step that has nothing new to do is skipped (VLMFLOW_RUN set: a run on this machine); outputs are written
beside and renamed when the step has ended; a user's mistake is one line and exit code 2; and the step's
record (seconds, peak memory, what went in and out) lies in the run's folder. In a pod of a cluster KFP keeps
the cache and the outputs, and the record goes to MLflow.
"""

import argparse
import errno
import json
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from vlmflow.config import recipes as recipes
from vlmflow.config.sections import WHOLE, part
from vlmflow.errors import EXIT_CODE, GateError, ServiceError, SpaceError, VlmflowError
from vlmflow.runtime.code_hash import code_hash
from vlmflow.runtime.prefork import ADDRESS, ask
from vlmflow.runtime.process import configure_logging, one_thread
from vlmflow.runtime.step_cache import Memo, content_hash, far, key, named
from vlmflow.tracking import step_run

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vlmflow.runtime.step_runner", allow_abbrev=False)
    parser.add_argument("executor", choices=["kfp.dsl.executor_main"])
    parser.add_argument("--module", required=True)
    parser.add_argument("--function", required=True)
    parser.add_argument("--executor_input", required=True)
    parser.add_argument("--run", default="", help="KFP's id of the run")
    given = parser.parse_args(arguments)
    configure_logging()
    one_thread()
    task = Task(given.module, given.function, json.loads(given.executor_input), given.run)
    try:
        if task.run_folder is None:
            task.work_in_pod()
            return 0
        warm = os.environ.get(ADDRESS)
        # What the registry holds is asked by a process that has imported mlflow already.
        if not (warm and task.function in REGISTRY) and task.recall():
            return 0
        if warm and (code := ask(warm, arguments)) is not None:
            return code
        task.work()
    except VlmflowError as error:
        task.record(status="failed", error=str(error), users=True)
        print(f"error: {given.function}: {error}", file=sys.stderr)  # noqa: T201  the one line that the user reads
        return EXIT_CODE
    except BaseException as error:
        task.record(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    return 0


class Task:
    """One step with its inputs and outputs, as KFP's executor input gives them."""

    def __init__(self, module: str, function: str, executor_input: dict[str, Any], kfp_run: str = ""):
        self.module, self.function, self.input, self.kfp_run = module, function, executor_input, kfp_run
        inputs, outputs = executor_input.get("inputs", {}), executor_input["outputs"]
        self.parameters: dict[str, Any] = inputs.get("parameterValues", {})
        self.inputs = {name: _path(a["artifacts"][0]["uri"]) for name, a in inputs.get("artifacts", {}).items()}
        self.outputs = {name: _path(a["artifacts"][0]["uri"]) for name, a in outputs.get("artifacts", {}).items()}
        self.output_file = Path(outputs["outputFile"])
        self.folder = self.output_file.parent
        self.name = self.folder.name
        run = os.environ.get("VLMFLOW_RUN")
        self.run_folder = Path(run) if run else None
        self.started = time.monotonic()
        self.facts: dict[str, Any] = {}

    def recall(self) -> bool:
        """Take what this step made before from the memo; False where it has to run."""
        if self.run_folder is None or self.function in NAMED:
            return False
        self.facts = self._facts()
        if self.function not in WHOLE and far(self.facts["section"]):
            return False
        note = Memo(self.run_folder.parent / ".memo").recall(self._key(), self.outputs)
        if note is not None:
            self.folder.mkdir(parents=True, exist_ok=True)  # of a step whose outputs are values alone
            self.output_file.write_text(note["executor_output"].replace("{folder}", str(self.folder)), encoding="utf-8")
            self.record(
                status="done",
                cached=True,
                outputs=note["outputs"],
                peak_mb=note["peak_mb"],
                took=note["seconds"],
                core_seconds=note.get("core_seconds"),
            )
        return note is not None

    def work(self) -> None:
        """Run the step; on this machine beside its place, and noted in the memo."""
        if self.run_folder is None:
            self._execute(self.input)
            return
        self.facts = self.facts or self._facts()
        staging = self.folder.with_name(f"{self.folder.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        meter = Meter()
        text = json.dumps(self.input["outputs"]).replace(str(self.folder), str(staging))
        try:
            self._execute({**self.input, "outputs": json.loads(text)})
        except GateError:  # what it wrote of its reasons is whole, and what the user needs to see
            self._settle(staging)
            self.facts["outputs"] = {
                label: {"path": str(path)} for label, path in self.outputs.items() if path.exists()
            }
            raise
        written = staging / self.output_file.name
        executor_output = written.read_text(encoding="utf-8") if written.exists() else "{}"
        executor_output = executor_output.replace(str(staging), "{folder}")
        written.write_text(executor_output.replace("{folder}", str(self.folder)), encoding="utf-8")
        self._settle(staging)
        seconds, peak, cores = time.monotonic() - self.started, meter.stop(), round(meter.core_seconds(), 1)
        facts = {
            "executor_output": executor_output,
            "seconds": round(seconds, 2),
            "peak_mb": peak,
            "core_seconds": cores,
        }
        note = Memo(self.run_folder.parent / ".memo").remember(self._key(), self.outputs, **facts)
        self.record(
            status="done",
            cached=False,
            outputs=note["outputs"],
            peak_mb=peak,
            took=note["seconds"],
            core_seconds=cores,
        )

    def work_in_pod(self) -> None:
        """Run the step where KFP keeps its cache and its outputs, and record it in MLflow, if there is one.

        Raises:
            ServiceError: MLflow is out of reach, before the work begins or when it is recorded.
        """
        from vlmflow.runtime.step import IMAGE  # brings kfp with it, which a step of the memo has no use for

        os.environ["VLMFLOW_KFP_RUN"] = self.kfp_run
        parent = None
        if os.environ.get("MLFLOW_TRACKING_URI"):
            try:
                parent = step_run.pipeline_run(self.kfp_run)
            except ServiceError:
                if self.function != "finish":  # which tells others first that MLflow is away, and fails then
                    raise
        self.facts, meter, error = self._facts(), Meter(), None
        try:
            self._execute(self.input)
        except BaseException as problem:
            error = problem
            raise
        finally:
            facts = {"peak_mb": meter.stop(), "core_seconds": round(meter.core_seconds(), 1)}
            if parent is not None:
                facts |= {"image": IMAGE, "kfp_run": self.kfp_run, "error": str(error) if error else None}
                facts["outputs"] = {
                    label: {"path": str(path), "hash": content_hash(path)}
                    for label, path in self.outputs.items()
                    if path.exists()
                }
                self._journal(self._record("failed" if error else "done", facts), parent, error)

    def _journal(self, record: dict[str, Any], parent: str, error: BaseException | None) -> None:
        try:
            step_run.log(record, parent)
        except ServiceError as refusal:
            if error is None:
                raise
            # The step's own error is the one to show.
            print(f"warning: {self.function}: not recorded: {refusal}", file=sys.stderr)  # noqa: T201

    def record(self, status: str, **facts: Any) -> None:
        """Write the step's record into the run's folder."""
        if self.run_folder is None:
            return
        folder = self.run_folder / "steps"
        folder.mkdir(parents=True, exist_ok=True)
        content = self._record(status, facts)
        beside = folder / f".{self.name}.partial"
        beside.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
        beside.replace(folder / f"{self.label}.json")
        if "outputs" in content:
            link = self.run_folder / self.label
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(self.folder, self.run_folder))

    def _record(self, status: str, facts: dict[str, Any]) -> dict[str, Any]:
        return {
            "task": self.name,
            "label": self.label,
            "step": self.function,
            "status": status,
            "seconds": round(time.monotonic() - self.started, 2),
            "input_paths": {name: str(path) for name, path in self.inputs.items()},
            **self.facts,
            **facts,
        }

    @property
    def label(self) -> str:
        """What people call the task: the step, and the stage or section that sets it apart."""
        part = self.parameters.get("stage") or self.parameters.get("section", self.function)
        part = part.removeprefix(self.function).replace('": ', "=")  # a setting of a sweep is JSON
        part = re.sub(r"[^\w.=+-]+", "_", part).strip("_")  # a file bears this name
        return f"{self.function}-{part}" if part else self.function

    def _facts(self) -> dict[str, Any]:
        """What decides the outcome: inputs and code by content, parameters, the sections of the recipe read."""
        parameters = dict(self.parameters)
        section: Any = None
        if "recipe" in parameters:
            sections = recipes.parse(parameters.pop("recipe"))
            if change := parameters.get("change"):
                sections = recipes.changed(sections, parameters.get("section", self.function), change)
            section = {"seed": 0} | part(sections, self.function, parameters.get("section", self.function))
        inputs = {name: content_hash(path) for name, path in self.inputs.items()}
        files = {} if self.function in (*WHOLE, *NAMED) else named(section)  # what steps read by its name
        code = code_hash(self.module)
        return {"inputs": inputs, "section": section, "files": files, "code": code, "parameters": parameters}

    def _key(self) -> str:
        """The memo's key; `register` changes what it goes by, so its note is kept under what it left."""
        state = outside(self.function, self.inputs, self.facts["section"] or {})
        return key(function=self.function, outside=state, **self.facts)

    def _settle(self, staging: Path) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        staging.rename(self.folder)

    def _execute(self, executor_input: dict[str, Any]) -> None:
        from importlib import import_module

        from kfp.dsl.executor import Executor

        try:
            component = getattr(import_module(self.module), self.function)
            Executor(executor_input=executor_input, function_to_execute=component).execute()
        except OSError as error:
            if error.errno in NO_ROOM:
                place = error.filename or self.folder
                raise SpaceError(
                    f"{place}: cannot be written: {error.strerror}; make room, or run elsewhere"
                ) from error
            raise


NAMED = ("fetch", "champion")  # what a branch's or an alias's name stands for changes: they run each time
REGISTRY = ("gate", "register")  # what they do depends on the registry too


def outside(function: str, inputs: dict[str, Path], section: dict[str, Any]) -> Any:
    """What a step depends on that is no input of it: the registry, for the two steps that go by it.

    A champion that is one of the contenders themselves is no rival: the gate decides as it did before.
    """
    if function not in REGISTRY:
        return None
    from vlmflow.artifacts.checkpoint import Checkpoint
    from vlmflow.tracking.registry import by_hash, champion

    name = (section.get("register") or {}).get("name", "vlm")
    if function == "register":
        known = by_hash(name, Checkpoint(inputs["model"]).hash)
        return [known.version, known.aliases] if known else None
    rival = champion(name)
    own = {Checkpoint(inputs[contender]).hash for contender in ("candidate", "fallback")}
    return None if rival is None or rival.model_hash in own else rival.version


class Meter:
    """Peak resident memory of this process and its children, sampled twice a second, and their seconds on a core."""

    def __init__(self) -> None:
        import psutil  # noqa: F401  not in the thread: a fork meanwhile would wait for that import for ever

        self.started = sum(os.times()[:4])
        self.peak, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        import psutil

        this = psutil.Process()
        while True:
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue  # it ended while we looked
            self.peak = max(self.peak, total)
            if self.done.wait(0.5):
                return

    def core_seconds(self) -> float:
        """Of this process and of its children that have ended, since the start."""
        return sum(os.times()[:4]) - self.started

    def stop(self) -> int:
        """Stop and return the peak in MB."""
        self.done.set()
        self.thread.join()
        return self.peak // 2**20


def _path(uri: str) -> Path:
    if "://" not in uri:
        return Path(uri)
    from kfp import dsl

    return Path(dsl.Artifact(uri=uri).path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
