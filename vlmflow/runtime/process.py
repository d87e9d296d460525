"""How each of our processes starts: one thread, one line a message."""

import logging
import os
import sys
import warnings
from typing import Literal


def one_thread() -> None:
    """Let each process use one thread, unless OMP_NUM_THREADS says otherwise; before torch is imported.

    Two threads on cores that are not idle can be ten times slower than one; work is spread over processes.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def configure_logging() -> None:
    """One line a message, with the time; chatter of libraries only from warnings on, and none for their own authors."""
    warnings.simplefilter("ignore", FutureWarning)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for name in ("models", "vlmflow", "components", "pipelines"):
        logging.getLogger(name).setLevel(logging.INFO)


def start_method() -> Literal["fork", "spawn"]:
    """How a step starts its workers: a fork has everything imported already, but CUDA does not survive one."""
    import torch

    return "spawn" if torch.cuda.is_available() or sys.platform != "linux" else "fork"
