"""A process with the large libraries imported; each step is a fork of it.

A training step needs ten seconds to import torch, transformers and TRL, which would be minutes for a run of
twenty-two steps. `vlmflow run` starts one such process for the duration of the run (`prefork_client`), sends it the
arguments, the environment and the standard streams of each step that is not in the step cache, and waits for the end.
"""

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import socket
import sys
from importlib import import_module
from multiprocessing.connection import wait
from typing import Any

from vlmflow.runtime.process import limit_threads

# Third-party code only: ours may change during a run, and the step cache depends on it.
PRELOADED = (
    "kfp.dsl.executor",
    "mlflow",
    "torch",
    "transformers.trainer",
    "great_expectations",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
)


def serve(listener: socket.socket) -> None:
    """Run a step for each connection, and import the libraries between connections.

    Ends when standard input closes: when the run ends or is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends this process
    limit_threads()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]  # as the caller reads them
    modules = list(PRELOADED)
    while 0 not in (ready := wait([listener, 0], timeout=0 if modules else None)):
        if listener in ready:
            _run_step(listener)
        elif modules:
            import_module(modules.pop(0))


def _run_step(listener: socket.socket) -> None:
    """Accept a connection, run its step in a fork, and answer with the exit code."""
    connection = listener.accept()[0]
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    gc.freeze()  # a garbage collection in a fork would copy every page of the imported modules
    step = multiprocessing.get_context("fork").Process(target=_become_step, args=(request, files))
    step.start()
    assert step.pid is not None  # it is started
    for file in files:
        os.close(file)
    if step.sentinel not in wait([step.sentinel, connection, 0]):
        step.kill()  # the caller has ended
        with contextlib.suppress(ProcessLookupError):
            os.killpg(step.pid, signal.SIGKILL)
    step.join()
    with connection, contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{step.exitcode}\n".encode())


def _become_step(request: dict[str, Any], files: list[int]) -> None:
    """Run the step in the fork, as if its own process ran it."""
    os.setpgid(0, 0)  # so that the workers that it starts end with it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    from vlmflow.runtime.step_runner import main

    sys.exit(main(request["arguments"], use_cache=False))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as passed:
        serve(passed)
