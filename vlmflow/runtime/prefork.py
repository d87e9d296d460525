"""A process that has the big libraries imported already, and becomes a step by a fork of itself.

A step that trains needs ten seconds to import torch, transformers and TRL; a run of twenty-two steps would
spend minutes on it. `vlmflow run` holds one such process for as long as it lasts. A step's own process
(`vlmflow.runtime.step_runner`) hands over its arguments, its environment and where it prints, and waits for the end.
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
from pathlib import Path
from typing import Any

from vlmflow.runtime.process import one_thread

ADDRESS = "VLMFLOW_WARM"
PRELOADED = (  # other people's code only: ours may change while a run goes on, and a step's memo goes by it
    "kfp.dsl.executor",
    "mlflow",
    "torch",
    "transformers.trainer",
    "great_expectations",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
)


def ask(address: str, arguments: list[str]) -> int | None:
    """Have the warm process at `address` run a step; returns the exit code, None where it is not there."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
        except OSError:
            return None
        socket.send_fds(connection, [b"*"], [0, 1, 2])
        request = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer = connection.makefile().readline()
    code = int(answer) if answer else -signal.SIGKILL
    if code < 0:
        print(  # noqa: T201  the step itself can say nothing any more
            f"error: the step was ended by signal {-code}; if that is 9, the machine was probably out of memory",
            file=sys.stderr,
        )
        return 128 - code
    return code


def serve(listener: socket.socket) -> None:
    """Run a step for each connection, import while there is none; until standard input closes, as it does when
    the run has ended or was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends us when it has ended
    one_thread()
    left = list(PRELOADED)
    while 0 not in (ready := wait([listener, 0], timeout=0 if left else None)):
        if listener in ready:
            _step(listener)
        elif left:
            import_module(left.pop(0))


def _step(listener: socket.socket) -> None:
    """Take a connection, run its step, answer with its exit code."""
    connection = listener.accept()[0]
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    gc.freeze()  # a collection in a fork would copy every page of what was imported
    step = multiprocessing.get_context("fork").Process(target=_become, args=(request, files))
    step.start()
    assert step.pid is not None  # it has been started
    for file in files:
        os.close(file)
    if step.sentinel not in wait([step.sentinel, connection, 0]):
        step.kill()  # nobody waits for it any more
        with contextlib.suppress(ProcessLookupError):
            os.killpg(step.pid, signal.SIGKILL)
    step.join()
    with connection, contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{step.exitcode}\n".encode())


def _become(request: dict[str, Any], files: list[int]) -> None:
    """In the new process: the step, as if it had been started alone."""
    os.setpgid(0, 0)  # so that it ends together with the workers that it starts
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    del os.environ[ADDRESS]
    os.chdir(request["folder"])
    from vlmflow.runtime.step_runner import main

    sys.exit(main(request["arguments"]))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as given:
        serve(given)
