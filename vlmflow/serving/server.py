"""Serve a model from the command line."""

import socket
from pathlib import Path

from vlmflow.errors import ServiceError
from vlmflow.serving.resolve import resolve


def serve(reference: str | Path, port: int = 8080, name: str = "vlm") -> int:
    """Serve `reference` on `port` until interrupted. Returns the exit code.

    Raises:
        ModelError: the reference names no checkpoint.
        ServiceError: the port is taken.
    """
    check_port(port)  # before the model is loaded, which takes seconds
    folder = resolve(reference)
    from vlmflow.serving.predictor import main

    return main(["--model_dir", str(folder), "--model_name", name, "--http_port", str(port), "--enable_grpc", "false"])


def check_port(port: int) -> None:
    """Raises ServiceError if nothing can listen on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except (OSError, OverflowError) as error:
            raise ServiceError(f"port {port}: {error}; choose another with --port") from None
