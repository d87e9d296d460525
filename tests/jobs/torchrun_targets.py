"""What the nodes of a TrainJob are asked to do in the tests."""

import os
import time
from pathlib import Path

from vlmflow.errors import DataError


def refuse(number: int, out: Path) -> None:
    """A mistake of the user."""
    raise DataError(f"{number} rows are too few")


def break_down(out: Path) -> None:
    """One node fails."""
    if os.environ["RANK"] == "1":
        raise ZeroDivisionError("the second node cannot divide")


def wait_for(file: str, out: Path) -> None:
    """Until a file is there."""
    while not Path(file).exists():
        time.sleep(0.1)
    if os.environ["RANK"] == "0":
        out.write_text("done")
