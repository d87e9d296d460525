"""Run a training function in one process or in several, as torchrun does."""

import os
from collections.abc import Callable
from typing import Any


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
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="local",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )
    elastic_launch(config, function)(*arguments)
