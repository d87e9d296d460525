"""The record of a step: status, duration, inputs, outputs and resources, as JSON."""

import json
import os
import time
from pathlib import Path
from typing import Any

from vlmflow.runtime.step_task import StepTask


class StepRecord:
    """The record of one task, from the start of its process.

    Args:
        task: the task.

    Attributes:
        values: further entries: the fingerprint, and the outputs if there are any.
    """

    def __init__(self, task: StepTask):
        self.task, self.values = task, dict[str, Any]()
        self._start = time.monotonic()

    def seconds(self) -> float:
        """Return the time since the start, in seconds."""
        return round(time.monotonic() - self._start, 2)

    def content(self, status: str, **values: Any) -> dict[str, Any]:
        """Return the record with `status` (`done` or `failed`) and further values."""
        return {
            "task": self.task.name,
            "label": self.task.label,
            "step": self.task.function,
            "status": status,
            "seconds": self.seconds(),
            "input_paths": {name: str(path) for name, path in self.task.inputs.items()},
            **self.values,
            **values,
        }

    def write(self, run_folder: Path, status: str, **values: Any) -> None:
        """Write the record into `run_folder`/steps, and link the outputs under the task's label."""
        folder = run_folder / "steps"
        folder.mkdir(parents=True, exist_ok=True)
        content = self.content(status, **values)
        partial = folder / f".{self.task.name}.partial"
        partial.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
        partial.replace(folder / f"{self.task.label}.json")
        if "outputs" in content:
            link = run_folder / self.task.label
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(self.task.folder, run_folder))
