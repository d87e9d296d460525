"""The program that torchrun starts in each process of a TrainJob's nodes.

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
from vlmflow.runtime.jobs.shared_volume import ARGUMENTS, JobVolume
from vlmflow.runtime.process import configure_logging, limit_threads


def main(job: str, function: str) -> None:
    """Call the function with the arguments on the job's volume.

    A user's mistake is stored for the step and the process succeeds, because a restart would not fix it.
    """
    configure_logging()
    limit_threads()
    volume = JobVolume(job)
    finished = volume.folder / "finished"
    finished.mkdir(exist_ok=True)
    if len(list(finished.iterdir())) == int(
        os.environ["WORLD_SIZE"]
    ):  # restarted because a node was lost after the end
        return
    module, name = function.split(":")
    target = getattr(import_module(module), name)
    values = json.loads((volume.folder / ARGUMENTS).read_text(encoding="utf-8"))
    hints = get_type_hints(target).values()
    try:
        target(*[_parse_argument(hint, value, volume) for hint, value in zip(hints, values)], volume.folder / "out")  # noqa: B905
    except VlmflowError as error:
        volume.write_error(error)
    (finished / os.environ["RANK"]).touch()


def _parse_argument(hint: Any, value: Any, volume: JobVolume) -> Any:
    """Return an argument with the type that the function declares."""
    if hint is Path:
        return volume.volume / value
    return recipes.load(hint, {"argument": value}, "argument") if is_section(hint) else value


if __name__ == "__main__":
    main(*sys.argv[1:])
