"""A task in a run on this machine: taken from the step cache, or executed with staged outputs."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vlmflow.artifacts.file_reads import FileReads
from vlmflow.errors import GateError, VlmflowError
from vlmflow.runtime import left_out
from vlmflow.runtime.code_hash import LAYERS, ROOT
from vlmflow.runtime.fingerprint import fingerprint, is_cacheable, task_key
from vlmflow.runtime.kfp_executor import execute
from vlmflow.runtime.resource_meter import ResourceMeter
from vlmflow.runtime.step_cache import FOLDER, StepCache, hash_outputs
from vlmflow.runtime.step_record import StepRecord
from vlmflow.runtime.step_task import StepTask


class LocalStep:
    """A task of a run on this machine.

    Args:
        task: the task.
        run_folder: the folder of the run, in VLMFLOW_HOME.
    """

    def __init__(self, task: StepTask, run_folder: Path):
        self.task, self.run_folder = task, run_folder
        self.record = StepRecord(task)
        self._cache = StepCache(run_folder.parent / FOLDER)

    def restore(self) -> bool:
        """Link the outputs of an earlier execution from the step cache; return False if the task must be executed.

        A task that is left out is not executed either: its outputs say why.
        """
        if reason := left_out.reason_to_leave_out(self.task):
            self.record.values = fingerprint(self.task)
            left_out.write_outputs(self.task, reason)
            self.record.values["left_out"] = reason
            self._write_done({"outputs": hash_outputs(self.task.outputs), "seconds": 0, "peak_mb": 0}, cached=False)
            return True
        if self.task.traits.always_run:
            return False
        found = self.record.values = fingerprint(self.task)
        if not is_cacheable(self.task, found):
            return False
        entry = self._cache.lookup(task_key(self.task, found), self.task.outputs)
        if entry is None:
            return False
        self.task.folder.mkdir(parents=True, exist_ok=True)  # missing if all outputs are parameters
        executor_output = replace_in_strings(entry["executor_output"], "{folder}", str(self.task.folder))
        self.task.output_file.write_text(json.dumps(executor_output), encoding="utf-8")
        self._write_done(entry, cached=True)
        return True

    def run(self) -> None:
        """Execute the task, and store its outputs in the step cache."""
        found = self.record.values = self.record.values or fingerprint(self.task)
        staging = self.task.folder.with_name(f"{self.task.folder.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        meter = ResourceMeter()
        outputs = replace_in_strings(self.task.executor_input["outputs"], str(self.task.folder), str(staging))
        reads = FileReads([self.task.folder, staging, *(ROOT / layer for layer in LAYERS)])
        try:
            with reads.recording() if self.task.traits.reads_sources else nullcontext():
                execute(self.task, {**self.task.executor_input, "outputs": outputs})
        except GateError:  # the outputs with its reasons are complete, and the user needs them
            self._publish(staging)
            self.record.values["outputs"] = {
                name: {"path": str(path)} for name, path in self.task.outputs.items() if path.exists()
            }
            raise
        written = staging / self.task.output_file.name
        executor_output = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
        executor_output = replace_in_strings(executor_output, str(staging), "{folder}")
        final_output = replace_in_strings(executor_output, "{folder}", str(self.task.folder))
        written.write_text(json.dumps(final_output), encoding="utf-8")
        self._publish(staging)
        entry = self._store(found, reads, executor_output, meter.usage())
        self._write_done(entry, cached=False)

    def _store(
        self, found: dict[str, Any], reads: FileReads, executor_output: Any, usage: dict[str, Any]
    ) -> dict[str, Any]:
        """Store the outputs in the step cache, unless the step read something that cannot be compared later."""
        hashes = reads.hashes() if self.task.traits.reads_sources else None
        usage = {"seconds": self.record.seconds(), **usage}
        if self.task.traits.reads_sources and hashes is None:
            return {"outputs": hash_outputs(self.task.outputs), **usage}
        key = task_key(self.task, found)
        return self._cache.store(key, self.task.outputs, hashes, executor_output=executor_output, **usage)

    @contextmanager
    def failure_recorded(self) -> Iterator[None]:
        """Write the record of the task if the body raises."""
        try:
            yield
        except VlmflowError as error:
            self.record.write(self.run_folder, "failed", error=str(error), users=True)
            raise
        except BaseException as error:
            self.record.write(self.run_folder, "failed", error=f"{type(error).__name__}: {error}")
            raise

    def _write_done(self, entry: dict[str, Any], *, cached: bool) -> None:
        usage = {"peak_mb": entry["peak_mb"], "took": entry["seconds"], "core_seconds": entry.get("core_seconds")}
        self.record.write(self.run_folder, "done", cached=cached, outputs=entry["outputs"], **usage)

    def _publish(self, staging: Path) -> None:
        """Move the outputs to their final path."""
        shutil.rmtree(self.task.folder, ignore_errors=True)
        staging.rename(self.task.folder)


def replace_in_strings(value: Any, old: str, new: str) -> Any:
    """Return the JSON value with `old` replaced in every string.

    Not done in the JSON text, where a path with accents or quotes is escaped.
    """
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list):
        return [replace_in_strings(item, old, new) for item in value]
    if isinstance(value, dict):
        return {key: replace_in_strings(item, old, new) for key, item in value.items()}
    return value
