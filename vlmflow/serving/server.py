"""The server of the predictor: KServe V1 and V2, and OpenAI chat over HTTP; KServe V2 over gRPC if it has a port.

python -m vlmflow.serving.server --model_dir /mnt/models --model_name vlm --http_port 8080
"""

import asyncio
import os
import signal
import socket
import sys
import threading
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Sequence
from logging.config import dictConfig
from pathlib import Path
from typing import TYPE_CHECKING

from vlmflow.errors import EXIT_CODE, ServiceError, VlmflowError
from vlmflow.serving.resolve import resolve

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

LOOPBACK = "127.0.0.1"
GRACE_SECONDS = 30  # for requests in flight when the server stops
KEEP_ALIVE_SECONDS = 65  # longer than a proxy's, as KServe's own servers


def serve(
    reference: str | Path, port: int = 8080, name: str | None = None, host: str = LOOPBACK, grpc_port: int | None = None
) -> int:
    """Serve the model `reference` until SIGTERM or Ctrl-C. Returns the exit code.

    Args:
        port: of HTTP; 0 takes a free one. The address is printed.
        name: in requests; by default the registered name of a registered version, otherwise `vlm`.
        host: address to listen on; 0.0.0.0 for all.
        grpc_port: of gRPC; None: off.

    Raises:
        ModelError: `reference` is not a checkpoint.
        ServiceError: the address cannot be used.
    """
    with bind(host, port) as listener:  # before the model is loaded, which takes seconds
        return run(resolve(reference), name or registered_name(reference) or "vlm", listener, grpc_port)


def registered_name(reference: str | Path) -> str | None:
    """Return `vlm` of `models:/vlm@champion` or `models:/vlm/3`; None for a folder."""
    prefix, slash, rest = str(reference).partition("models:/")
    return rest.split("/")[0].split("@")[0] if slash and not prefix else None


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address but does not listen yet.

    Raises:
        ServiceError: the address cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
    except (OSError, UnicodeError) as error:
        raise ServiceError(f"host {host!r}: {error}; choose another with --host") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address[0], port, *address[2:]))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ServiceError(f"port {port} on {host}: {error}; choose another with --port") from None
    return listener


def check_port(port: int, host: str = LOOPBACK) -> None:
    """Raises ServiceError if nothing can listen on `port` of `host`."""
    bind(host, port).close()


def run(folder: str | Path, name: str, listener: socket.socket, grpc_port: int | None = None) -> int:
    """Load the checkpoint `folder` and serve it on a bound socket until SIGTERM or Ctrl-C. Returns the exit code.

    Raises:
        ModelError: the folder contains no checkpoint.
        ServiceError: the gRPC port cannot be used.
    """
    from PIL import Image

    from vlmflow.serving.app import create_app
    from vlmflow.serving.predictor import Predictor
    from vlmflow.serving.request_images import MAX_IMAGE_PIXELS

    Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS  # also of an image inside an ICO
    host, port = listener.getsockname()[:2]
    if grpc_port:
        check_port(grpc_port, host)
    predictor = Predictor(name, folder)
    predictor.load()
    _configure_logging()
    server = create_server(create_app(predictor))
    # uvicorn stops on these signals, then raises them again for these handlers: a requested stop is not an error.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))

    async def serve_all() -> None:
        grpc = None
        if grpc_port is not None:
            from vlmflow.serving.grpc_server import create_grpc_server

            grpc, bound = create_grpc_server(predictor, host, grpc_port)
            await grpc.start()
            sys.stdout.write(f"{name}: KServe V2 over gRPC at {_address(host, bound)}\n")
        listener.listen()
        sys.stdout.write(f"{name}: KServe V1 and V2, and OpenAI chat at http://{_address(host, port)}\n")
        sys.stdout.flush()
        await server.serve(sockets=[listener])
        if grpc is not None:
            await grpc.stop(GRACE_SECONDS)

    asyncio.run(serve_all())
    return 0


def create_server(app: "ASGIApp") -> "uvicorn.Server":
    """Return the HTTP server of an application."""
    import uvicorn

    from vlmflow.serving.header_timeout import HeaderTimeout

    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=HeaderTimeout,
            ws="none",
            log_config=None,
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Load the checkpoint and serve it until SIGTERM or Ctrl-C. Returns the exit code."""
    options = parse_arguments(argv)
    if options.until_stdin_closes:
        _stop_with_parent()
    try:
        with bind(options.host, options.http_port) as listener:
            return run(options.model_dir, options.model_name, listener, options.grpc_port)
    except VlmflowError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CODE


def parse_arguments(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the command line of a container; options have the names of KServe's own servers."""
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model_dir", default="/mnt/models", help="Folder of the checkpoint.")
    parser.add_argument("--model_name", default="vlm", help="Model name in requests.")
    parser.add_argument("--host", default=LOOPBACK, help="Address to listen on; 0.0.0.0 for all.")
    parser.add_argument("--http_port", type=int, default=8080, help="HTTP port; 0 takes a free one.")
    parser.add_argument("--grpc_port", type=int, default=None, help="gRPC port; no gRPC without it.")
    parser.add_argument("--until_stdin_closes", action="store_true", help="Stop when stdin closes.")
    return parser.parse_args(argv)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _configure_logging() -> None:
    """Log requests to stdout and the rest to stderr, in KServe's format."""
    from kserve.logging import KSERVE_LOG_CONFIG

    ours = {"vlmflow": {"handlers": ["kserve"], "level": "INFO", "propagate": False}}
    dictConfig({**KSERVE_LOG_CONFIG, "loggers": {**KSERVE_LOG_CONFIG["loggers"], **ours}})


def _stop_with_parent() -> None:
    """Stop when stdin closes, which means that the parent process has ended."""

    def wait() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock would break the exit of the interpreter
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
