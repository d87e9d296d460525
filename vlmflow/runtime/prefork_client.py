"""The caller's side of the preforked process (`vlmflow.runtime.prefork`): start it, and run steps in its forks."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from vlmflow.runtime.code_hash import ROOT

PREFORK_ADDRESS = "VLMFLOW_PREFORK"  # environment variable with the path of the process's Unix socket


class PreforkedProcess:
    """A process with the large libraries imported, from which steps are forked; the first step starts it.

    Args:
        log: the file of its own output; that of the steps is printed here.
        address: path of the Unix socket of such a process that runs already; "" starts one.
    """

    def __init__(self, log: Path, address: str = ""):
        self.log, self._is_given = log, bool(address)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # kfp.local runs parallel steps in threads
        self._place = tempfile.TemporaryDirectory()  # the path of a run's folder may be too long for a socket
        self.address = address or f"{self._place.name}/socket"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()  # closes its standard input, on which it ends
        self._place.cleanup()

    def run(self, arguments: list[str]) -> int:
        """Run a step in a fork, print what it prints, and return its exit code.

        Args:
            arguments: of the step runner.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            self.start()
            connection.connect(self.address)
            output, written = os.pipe()
            with open(os.devnull) as nothing:  # noqa: PTH123  a device, not a file
                socket.send_fds(connection, [b"*"], [nothing.fileno(), written, written])
            os.close(written)
            request = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
            connection.sendall(json.dumps(request).encode() + b"\n")
            with os.fdopen(output, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    print(line, end="")  # noqa: T201  the output of the step
            try:
                answer = connection.makefile().readline()
            except ConnectionResetError:  # the process has ended
                answer = ""
        code = int(answer) if answer else -signal.SIGKILL
        if code < 0:
            print(  # noqa: T201  the step itself cannot print any more
                f"error: the step was ended by signal {-code}; signal 9 usually means that memory ran out"
            )
            return 128 - code
        return code

    def start(self) -> None:
        """Start the process, unless it runs."""
        with self._lock:
            if not self._is_given and (self._process is None or self._process.poll() is not None):
                self._start()

    def _start(self) -> None:
        Path(self.address).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener, self.log.open("a") as log:
            listener.bind(self.address)
            listener.listen()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vlmflow.runtime.prefork", str(listener.fileno())],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
            )
