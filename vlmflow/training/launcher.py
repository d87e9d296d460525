"""Run a training function where the recipe says: in this process, in several as torchrun does, or on several nodes."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmflow import errors
from vlmflow.runtime.process import configure_logging, start_method
from vlmflow.training.config import TrainingConfig


def spread(step: str, function: Callable[..., None], training: TrainingConfig, *arguments: Any, out: Path) -> None:
    """Call `function(*arguments, out)` in every process that `training` asks for.

    Args:
        arguments: each `Path` among them is an artifact that the function reads.
        out: the artifact that process 0 writes.

    Raises:
        ServiceError: several nodes are asked for, and the cluster does not give them.
    """
    if training.nodes > 1 and "RANK" not in os.environ:
        from vlmflow.runtime.jobs.trainjob import on_nodes

        on_nodes(step, function, training, *arguments, out=out)
    else:
        launch(function, training.processes, *arguments, out)


def launch(function: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Call `function(*arguments)` in each of `processes` workers that form one process group.

    On a CPU two processes of one thread learn faster than one process of two threads: small matrices do
    not split well. Under torchrun, or on a node of a TrainJob, the group exists already and the function
    is simply called.

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
        refusal = Path(folder) / "refusal"
        try:
            elastic_launch(config, _enter)(function, str(refusal), *arguments)
        except ChildFailedError as error:
            if not refusal.exists():
                raise
            kind, message = refusal.read_text(encoding="utf-8").split("\n", 1)
            raise getattr(errors, kind)(message) from error


def _enter(function: Callable[..., None], refusal: str, *arguments: Any) -> None:
    """A new process: it speaks as its parent does, and hands a user's mistake up to it."""
    configure_logging()
    try:
        function(*arguments)
    except errors.VlmflowError as error:
        Path(refusal).write_text(f"{type(error).__name__}\n{error}", encoding="utf-8")
        raise
