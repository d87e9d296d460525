"""One execution of a step: its inputs, outputs and parameters, parsed from KFP's executor input."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmflow.runtime.traits import StepTraits

KFP_LOG = "executor-logs"


@dataclass(frozen=True)
class StepTask:
    """A step with its artifacts.

    module, function: where the step's function is.
    executor_input: KFP's executor input.
    """

    module: str
    function: str
    executor_input: dict[str, Any]
    traits: StepTraits = field(default_factory=StepTraits)

    @property
    def parameters(self) -> dict[str, Any]:
        """The values of the step's parameters."""
        return self.executor_input.get("inputs", {}).get("parameterValues", {})

    @cached_property
    def inputs(self) -> dict[str, Path]:
        """The path of each input artifact."""
        return _artifact_paths(self.executor_input.get("inputs", {}))

    @cached_property
    def outputs(self) -> dict[str, Path]:
        """The path of each output artifact that the step writes.

        KFP adds `executor-logs`, to which its launcher writes the output of this process while it runs.
        """
        paths = _artifact_paths(self.executor_input["outputs"])
        return {name: path for name, path in paths.items() if name != KFP_LOG}

    @property
    def output_file(self) -> Path:
        """The file into which KFP's executor writes the output parameters."""
        return Path(self.executor_input["outputs"]["outputFile"])

    @property
    def folder(self) -> Path:
        """The folder of the outputs."""
        return self.output_file.parent

    @property
    def name(self) -> str:
        """KFP's name of the task."""
        return self.folder.name

    @property
    def label(self) -> str:
        """The display name: the step, and the stage or section that distinguishes it. It is also a file name."""
        part = self.parameters.get("stage") or self.parameters.get("section", self.function)
        part = part.removeprefix(self.function).replace('": ', "=")  # the grid point of a sweep is JSON
        part = re.sub(r"[^\w.=+-]+", "_", part).strip("_")
        return f"{self.function}-{part}" if part else self.function


def _artifact_paths(side: dict[str, Any]) -> dict[str, Path]:
    return {name: _local_path(value["artifacts"][0]["uri"]) for name, value in side.get("artifacts", {}).items()}


def _local_path(uri: str) -> Path:
    if "://" not in uri:
        return Path(uri)
    from kfp import dsl

    return Path(dsl.Artifact(uri=uri).path)
