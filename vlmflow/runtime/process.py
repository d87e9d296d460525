"""Settings of each of our processes: the number of threads, logging, and how workers are started."""

import logging
import os
import sys
import warnings
from typing import Literal


def limit_threads() -> None:
    """Use one thread per process unless OMP_NUM_THREADS is set; must be called before torch is imported.

    Two threads on busy cores can be ten times slower than one; the work is parallelised with processes.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def configure_logging() -> None:
    """Log one line per message, with the time; for libraries, warnings and errors only."""
    warnings.simplefilter("ignore", FutureWarning)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for name in ("models", "vlmflow", "components", "pipelines"):
        logging.getLogger(name).setLevel(logging.INFO)


def start_method() -> Literal["fork", "spawn"]:
    """Return how a step starts its workers: a fork is fast, because everything is imported, but breaks CUDA."""
    import torch

    return "spawn" if torch.cuda.is_available() or sys.platform != "linux" else "fork"
