"""The engine: the same work on every part of a dataset, on this machine or, unchanged, on a Ray cluster.

A part of a shard is what a worker takes, finishes and leaves behind: the outcome, a small Arrow table, goes to a file
of the scratch folder whose name is a hash of all that decided it. A run that was killed finds the files of
its finished parts there and goes on with the others; who finished which, and when, does not show.
"""

import logging
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from vlmflow import errors
from vlmflow.artifacts.dataset import Dataset
from vlmflow.runtime.process import one_thread, start_method

logger = logging.getLogger(__name__)

GROUPS = 1  # row groups, of 1024 rows each, in a part

Work = Callable[..., pa.Table]
Task = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Who works: this process and its forks (native), or the workers of a Ray cluster (ray).

    `address`, or else RAY_ADDRESS, names the cluster; without either Ray starts on this machine. Its workers see the
    dataset and `scratch` under the same paths.
    """

    kind: Literal["native", "ray"] = "native"
    processes: int = 1
    address: str | None = None
    scratch: Path

    def run(self, work: Work, tasks: Sequence[tuple[str, Task]]) -> Iterator[pa.Table]:
        """Yield `work(*task)` of every task, in order, memory-mapped; finished ones are not worked on again.

        Args:
            work: stateless, or with state that each worker may build for itself; it can be pickled.
            tasks: each with its name, which says all that decides the outcome.

        Raises:
            SpaceError: a worker died. ServiceError: there is no such Ray cluster.
        """
        self.scratch.mkdir(parents=True, exist_ok=True)
        files = [self.scratch / f"{name}.arrow" for name, _ in tasks]
        named = {str(file): task for file, (_, task) in zip(files, tasks, strict=True)}  # equal parts are done once
        todo = [(file, task) for file, task in named.items() if not Path(file).exists()]
        if len(todo) < len(named):
            logger.info("%d of %d parts were finished before", len(named) - len(todo), len(named))
        if self.kind == "ray" and todo:
            _ray(work, todo, self.processes, self.address)
        elif min(self.processes, len(todo)) > 1:
            _processes(work, todo, min(self.processes, len(todo)))
        else:
            for file, task in todo:
                _finish(work, file, task)
        for file in files:
            with pa.memory_map(str(file)) as source:
                yield pa.ipc.open_file(source).read_all()

    def clear(self) -> None:
        """Remove what the finished run no longer needs."""
        shutil.rmtree(self.scratch, ignore_errors=True)


def parts(data: Dataset) -> Iterator[tuple[str, str, list[int], int]]:
    """What one worker takes at a time: a shard's hash and path, the numbers of row groups, and how many rows.

    A shard of full size is some parts, so that a few large ones keep all workers busy to the end.
    """
    for shard in data.card.shards:
        path = str(data.path / shard["name"])
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        for first in range(0, len(sizes), GROUPS):
            groups = list(range(first, min(first + GROUPS, len(sizes))))
            yield shard["sha256"], path, groups, sum(sizes[group] for group in groups)


def _finish(work: Work, file: str, task: Task) -> None:
    """Do one task and leave its outcome, whole or not at all."""
    beside = f"{file}.{os.getpid()}.partial"
    outcome = work(*task)
    with pa.OSFile(beside, "wb") as sink, pa.ipc.new_file(sink, outcome.schema) as writer:
        writer.write_table(outcome.combine_chunks())  # so that whoever maps the file need not put it together
    Path(beside).replace(file)


_work: Work  # of this worker; a fork inherits it, so that nothing is built twice


def _enter(work: Work) -> None:
    global _work
    one_thread()
    _work = work


def _next(file: str, task: Task) -> None:
    _finish(_work, file, task)


def _processes(work: Work, todo: list[tuple[str, Task]], processes: int) -> None:
    context = multiprocessing.get_context(start_method())
    try:
        with ProcessPoolExecutor(processes, context, _enter, (work,)) as pool:
            list(pool.map(_next, *zip(*todo, strict=True)))
    except BrokenProcessPool:
        raise errors.SpaceError(
            f"a worker of {processes} died, as a rule for want of memory; finished parts are kept: "
            f"run it again, with processes below {processes} in section curate"
        ) from None


def _ray(work: Work, todo: list[tuple[str, Task]], processes: int, address: str | None) -> None:
    import daft
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized():
        here = {} if address else {"num_cpus": processes, "include_dashboard": False}
        try:
            ray.init(address, log_to_driver=False, **here)
        except (ConnectionError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise errors.ServiceError(
                f"curate.ray {address}: no Ray cluster answers there: {reason}; start it, or leave ray out and unset "
                "RAY_ADDRESS for Ray on this machine"
            ) from None
    if daft.get_or_infer_runner_type() != "ray":  # it can be said once
        daft.set_runner_ray()

    @daft.cls(max_concurrency=processes, cpus=1)
    class Worker:
        def __init__(self) -> None:
            self.work = work

        @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
        def finish(self, files: daft.Series, tasks: daft.Series) -> list[str]:
            return [
                _refusal(self.work, file, pickle.loads(task))
                for file, task in zip(files.to_pylist(), tasks.to_pylist(), strict=True)
            ]

    columns = {"file": [file for file, _ in todo], "task": [pickle.dumps(task) for _, task in todo]}
    frame = daft.from_pydict(columns).into_partitions(len(todo))
    answers = frame.select(Worker().finish(frame["file"], frame["task"]).alias("refusal")).to_pydict()
    for refusal in filter(None, answers["refusal"]):
        kind, message = refusal.split("\n", 1)
        raise getattr(errors, kind)(message)


def _refusal(work: Work, file: str, task: Task) -> str:
    """Do one task far away; a user's mistake comes back as a text of its kind and its line, else ""."""
    try:
        _finish(work, file, task)
    except errors.VlmflowError as error:
        return f"{type(error).__name__}\n{error}"
    except FileNotFoundError as error:
        place = error.filename or " ".join(str(error).split())
        return f"DataError\n{place}: a Ray worker does not see it; keep datasets on a volume that all workers share"
    return ""
