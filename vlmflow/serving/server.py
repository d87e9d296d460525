"""The HTTP server of the predictor: KServe V1 and V2, and OpenAI chat.

python -m vlmflow.serving.server --model_dir /mnt/models --model_name vlm --http_port 8080
"""

import os
import signal
import socket
import sys
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from vlmflow.errors import EXIT_CODE, ServiceError, VlmflowError
from vlmflow.serving.resolve import resolve


def serve(reference: str | Path, port: int = 8080, name: str = "vlm") -> int:
    """Serve the model `reference` on `port` until SIGTERM or Ctrl-C. Returns the exit code.

    Raises:
        ModelError: `reference` is not a checkpoint.
        ServiceError: the port cannot be used.
    """
    check_port(port)  # before the model is loaded, which takes seconds
    folder = resolve(reference)
    return main(["--model_dir", str(folder), "--model_name", name, "--http_port", str(port), "--enable_grpc", "false"])


def check_port(port: int) -> None:
    """Raises ServiceError if nothing can listen on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except (OSError, OverflowError) as error:
            raise ServiceError(f"port {port}: {error}; choose another with --port") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Load the checkpoint and serve it until SIGTERM or Ctrl-C. Returns the exit code."""
    options = parse_arguments(argv)
    from kserve import ModelServer
    from kserve.model_server import app  # the ASGI application that ModelServer runs

    from vlmflow.serving import chat
    from vlmflow.serving.body_limit import BodyLimit
    from vlmflow.serving.predictor import Predictor

    predictor = Predictor(options.model_name, options.model_dir)
    try:
        predictor.load()
    except VlmflowError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CODE
    app.include_router(chat.router)
    app.add_middleware(BodyLimit)
    app.state.predictor = predictor
    if options.until_stdin_closes:
        _stop_with_parent()
    server = ModelServer(http_port=options.http_port, grpc_port=options.grpc_port, enable_grpc=options.enable_grpc)
    server.start([predictor])
    return 0


def parse_arguments(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the command line: KServe's own options and ours."""
    from kserve.model_server import parser as kserve_parser

    parser = ArgumentParser(parents=[kserve_parser], conflict_handler="resolve", description=__doc__)
    parser.add_argument("--model_dir", default="/mnt/models", help="Folder of the checkpoint.")
    parser.add_argument(
        "--workers", type=int, default=1, choices=[1], help="Always 1: start more replicas to serve more requests."
    )
    parser.add_argument("--until_stdin_closes", action="store_true", help="Stop when stdin closes.")
    return parser.parse_args(argv)


def _stop_with_parent() -> None:
    """Stop when stdin closes, which means that the parent process has ended."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
