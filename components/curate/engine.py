"""The engine: run the same work on every part of a dataset, in local processes or on a Ray cluster.

A worker processes one part of a shard at a time and writes the result, a small Arrow table, to the scratch folder. The
file's name is a hash of everything that determines the result. So a run that was killed resumes: it skips the parts
whose files exist. Results do not depend on which worker computes a part, or when.
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
from vlmflow.runtime.process import limit_threads, start_method

logger = logging.getLogger(__name__)

GROUPS_PER_PART = 1  # row groups of 1024 rows

Work = Callable[..., pa.Table]
Task = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Local processes (`native`) or the workers of a Ray cluster (`ray`).

    Args:
        processes: worker processes, or Ray workers.
        address: of the Ray cluster; None uses RAY_ADDRESS, or starts Ray on this machine. The workers must see the
            dataset and `scratch` under the same paths as this process.
        scratch: folder for the results of the parts.
    """

    kind: Literal["native", "ray"] = "native"
    processes: int = 1
    address: str | None = None
    scratch: Path

    def run(self, work: Work, tasks: Sequence[tuple[str, Task]]) -> Iterator[pa.Table]:
        """Yield `work(*task)` for every task, in order, memory-mapped; skip the tasks that are finished.

        Args:
            work: can be pickled; stateless, or with state that each worker can build for itself.
            tasks: (name, arguments); the name is a hash of everything that determines the result.

        Raises:
            SpaceError: a worker died. ServiceError: the Ray cluster cannot be reached.
        """
        self.scratch.mkdir(parents=True, exist_ok=True)
        files = [self.scratch / f"{name}.arrow" for name, _ in tasks]
        named = {str(file): task for file, (_, task) in zip(files, tasks, strict=True)}  # equal parts run once
        todo = [(file, task) for file, task in named.items() if not Path(file).exists()]
        if len(todo) < len(named):
            logger.info("resuming: %d of %d parts are finished", len(named) - len(todo), len(named))
        if self.kind == "ray" and todo:
            _run_on_ray(work, todo, self.processes, self.address)
        elif min(self.processes, len(todo)) > 1:
            _run_in_processes(work, todo, min(self.processes, len(todo)))
        else:
            for file, task in todo:
                _run_and_commit(work, file, task)
        for file in files:
            with pa.memory_map(str(file)) as source:
                yield pa.ipc.open_file(source).read_all()

    def remove_scratch(self) -> None:
        """Remove the results of the parts, after the run."""
        shutil.rmtree(self.scratch, ignore_errors=True)


def iter_parts(data: Dataset) -> Iterator[tuple[str, str, list[int], int]]:
    """Yield the parts of a dataset: hash and path of the shard, indices of row groups, and number of rows.

    A full shard has several parts, so that all workers stay busy with few shards.
    """
    for shard in data.card.shards:
        path = str(data.path / shard["name"])
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        for first in range(0, len(sizes), GROUPS_PER_PART):
            groups = list(range(first, min(first + GROUPS_PER_PART, len(sizes))))
            yield shard["sha256"], path, groups, sum(sizes[group] for group in groups)


def _run_and_commit(work: Work, file: str, task: Task) -> None:
    """Run one task and write its result atomically."""
    partial = f"{file}.{os.getpid()}.partial"
    table = work(*task)
    with pa.OSFile(partial, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())  # one chunk, so that readers can map the file without a copy
    Path(partial).replace(file)


_worker_work: Work  # of this worker process; a global, so that its state is built once per worker


def _init_worker(work: Work) -> None:
    global _worker_work
    limit_threads()
    _worker_work = work


def _run_in_worker(file: str, task: Task) -> None:
    _run_and_commit(_worker_work, file, task)


def _run_in_processes(work: Work, todo: list[tuple[str, Task]], processes: int) -> None:
    context = multiprocessing.get_context(start_method())
    try:
        with ProcessPoolExecutor(processes, context, _init_worker, (work,)) as pool:
            list(pool.map(_run_in_worker, *zip(*todo, strict=True)))
    except BrokenProcessPool:
        raise errors.SpaceError(
            f"one of {processes} workers died, probably out of memory; finished parts are kept: "
            f"run again with processes below {processes} in section curate"
        ) from None


def _run_on_ray(work: Work, todo: list[tuple[str, Task]], processes: int, address: str | None) -> None:
    import daft
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized():
        options = {} if address else {"num_cpus": processes, "include_dashboard": False}
        try:
            ray.init(address, log_to_driver=False, **options)
        except (ConnectionError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise errors.ServiceError(
                f"curate.ray {address}: cannot connect to a Ray cluster: {reason}; start it, or remove ray and "
                "unset RAY_ADDRESS to use Ray on this machine"
            ) from None
    if daft.get_or_infer_runner_type() != "ray":  # can be set only once per process
        daft.set_runner_ray()

    @daft.cls(max_concurrency=processes, cpus=1)
    class Worker:
        def __init__(self) -> None:
            self.work = work

        @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
        def run_batch(self, files: daft.Series, tasks: daft.Series) -> list[str]:
            return [
                _remote_error(self.work, file, pickle.loads(task))
                for file, task in zip(files.to_pylist(), tasks.to_pylist(), strict=True)
            ]

    columns = {"file": [file for file, _ in todo], "task": [pickle.dumps(task) for _, task in todo]}
    frame = daft.from_pydict(columns).into_partitions(len(todo))
    results = frame.select(Worker().run_batch(frame["file"], frame["task"]).alias("error")).to_pydict()
    for error in filter(None, results["error"]):
        kind, message = error.split("\n", 1)
        raise getattr(errors, kind)(message)


def _remote_error(work: Work, file: str, task: Task) -> str:
    """Run one task in a Ray worker; return a user error as its class name and message, else ""."""
    try:
        _run_and_commit(work, file, task)
    except errors.VlmflowError as error:
        return f"{type(error).__name__}\n{error}"
    except FileNotFoundError as error:
        path = error.filename or " ".join(str(error).split())
        return f"DataError\n{path}: not found by a Ray worker; put datasets on a volume that all workers share"
    return ""
