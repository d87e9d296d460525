"""What torchrun starts in each process of a TrainJob's node.

python -m torch.distributed.run -m components.jobs.node JOB
"""

import os
import pickle
import sys
from pathlib import Path

from components.errors import VlmflowError
from components.jobs.place import Place
from components.process import configure_logging, one_thread


def main(job: str) -> None:
    """Call what waits in the job's place; a mistake of the user is an outcome, which no restart would mend."""
    configure_logging()
    one_thread()
    place = Place(job)
    finished = place.folder / "finished"
    finished.mkdir(exist_ok=True)
    if len(list(finished.iterdir())) == int(os.environ["WORLD_SIZE"]):  # a node was lost after the end
        return
    os.environ.setdefault("VLMFLOW_CHECKPOINTS", str(place.volume / "checkpoints"))
    function, arguments = pickle.loads((place.folder / "call").read_bytes())
    try:
        function(*[place.volume / one if isinstance(one, Path) else one for one in arguments], place.folder / "out")
    except VlmflowError as error:
        place.refuse(error)
    (finished / os.environ["RANK"]).touch()


if __name__ == "__main__":
    main(sys.argv[1])
