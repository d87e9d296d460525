"""Functions that the nodes of a TrainJob call in the tests."""

import os
import time
from pathlib import Path

from vlmflow.errors import DataError


def raise_data_error(number: int, out: Path) -> None:
    """Raise a user's mistake."""
    raise DataError(f"{number} rows are too few")


def fail_on_second_node(out: Path) -> None:
    """Fail on one of two nodes."""
    if os.environ["RANK"] == "1":
        raise ZeroDivisionError("the second node cannot divide")


def wait_for(file: str, out: Path) -> None:
    """Wait until a file exists."""
    while not Path(file).exists():
        time.sleep(0.1)
    if os.environ["RANK"] == "0":
        out.write_text("done")
