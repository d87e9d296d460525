"""What torchrun starts in each process of a TrainJob's node.

python -m torch.distributed.run -m vlmflow.runtime.jobs.torchrun_entry JOB MODULE:FUNCTION
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from vlmflow.config import recipes
from vlmflow.config.section import is_section
from vlmflow.errors import VlmflowError
from vlmflow.runtime.jobs.shared_volume import ARGUMENTS, Place
from vlmflow.runtime.process import configure_logging, limit_threads


def main(job: str, function: str) -> None:
    """Call the function with what waits in the job's place.

    A mistake of the user is an outcome, which no restart would mend.
    """
    configure_logging()
    limit_threads()
    place = Place(job)
    finished = place.folder / "finished"
    finished.mkdir(exist_ok=True)
    if len(list(finished.iterdir())) == int(os.environ["WORLD_SIZE"]):  # a node was lost after the end
        return
    os.environ.setdefault("VLMFLOW_CHECKPOINTS", str(place.volume / "checkpoints"))
    module, name = function.split(":")
    called = getattr(import_module(module), name)
    given = json.loads((place.folder / ARGUMENTS).read_text(encoding="utf-8"))
    hints = get_type_hints(called).values()
    try:
        called(*[_typed(hint, one, place) for hint, one in zip(hints, given)], place.folder / "out")  # noqa: B905
    except VlmflowError as error:
        place.refuse(error)
    (finished / os.environ["RANK"]).touch()


def _typed(hint: Any, value: Any, place: Place) -> Any:
    """An argument as the function declares it."""
    if hint is Path:
        return place.volume / value
    return recipes.load(hint, {"argument": value}, "argument") if is_section(hint) else value


if __name__ == "__main__":
    main(*sys.argv[1:])
