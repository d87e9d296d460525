"""Run a training function in this process, in several processes as torchrun does, or on several nodes."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmflow import errors
from vlmflow.runtime.process import configure_logging, start_method
from vlmflow.training.config import TrainingConfig


def run_distributed(
    step: str, function: Callable[..., None], training: TrainingConfig, *arguments: Any, out: Path
) -> None:
    """Call `function(*arguments, out)` in every process of `training.nodes` and `training.processes`.

    Args:
        arguments: each `Path` among them is an input artifact.
        out: the artifact that process 0 writes.

    Raises:
        ServiceError: the cluster does not provide the nodes.
    """
    if training.nodes > 1 and "RANK" not in os.environ:
        from vlmflow.runtime.jobs.trainjob import run_on_nodes

        run_on_nodes(step, function, training, *arguments, out=out)
    else:
        launch(function, training.processes, *arguments, out)


def launch(function: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Call `function(*arguments)` in each of `processes` workers that form one process group.

    On a CPU two processes of one thread train faster than one process of two threads, because small matrices do not
    split well. Under torchrun, or on a node of a TrainJob, the group exists already and the function is called in this
    process.

    Args:
        function: importable by name; process 0 writes the results.
    """
    if processes == 1 or "RANK" in os.environ:
        function(*arguments)
        return
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="local",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method=start_method(),
    )
    with tempfile.TemporaryDirectory() as folder:
        error_file = Path(folder) / "error"
        try:
            elastic_launch(config, _enter)(function, str(error_file), *arguments)
        except ChildFailedError as error:
            if not error_file.exists():
                raise
            kind, message = error_file.read_text(encoding="utf-8").split("\n", 1)
            raise getattr(errors, kind)(message) from error


def _enter(function: Callable[..., None], error_file: str, *arguments: Any) -> None:
    """In a new process: log like the parent, and write a VlmflowError to `error_file` for the parent to raise."""
    configure_logging()
    try:
        function(*arguments)
    except errors.VlmflowError as error:
        Path(error_file).write_text(f"{type(error).__name__}\n{error}", encoding="utf-8")
        raise
