"""Run a step in a fork of the preforked process (`vlmflow.runtime.prefork`); the caller's side."""

import json
import os
import signal
import socket
import sys
from pathlib import Path

PREFORK_ADDRESS = "VLMFLOW_PREFORK"  # environment variable with the path of the process's Unix socket


def run_in_prefork(address: str, arguments: list[str]) -> int | None:
    """Run a step in a fork of the preforked process; returns the exit code, or None if there is no such process.

    Args:
        address: path of its Unix socket.
        arguments: arguments of the step runner.
    """
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
        print(  # noqa: T201  the step itself cannot print any more
            f"error: the step was ended by signal {-code}; signal 9 usually means that the machine ran out of memory",
            file=sys.stderr,
        )
        return 128 - code
    return code
