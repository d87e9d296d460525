"""The folder that a step shares with the pods of its job."""

import os
import shutil
from pathlib import Path

from vlmflow import errors
from vlmflow.errors import ServiceError

VOLUME = "VLMFLOW_SHARED"
ARGUMENTS = "arguments.json"  # arguments of the function that a TrainJob calls
_ERROR = "error"


class JobVolume:
    """A job's folder on a volume that many pods mount; VLMFLOW_SHARED is its mount path in each of them.

    It contains the inputs and outputs of the job, and `error` if the job ended with a user's mistake, which a retry
    would not fix.

    Args:
        job: the job's name.

    Raises:
        ServiceError: VLMFLOW_SHARED is not a folder.
    """

    def __init__(self, job: str):
        volume = os.environ.get(VOLUME, "")
        if not Path(volume).is_dir() or not volume:
            raise ServiceError(
                f"{VOLUME}={volume}: not a folder; {job} runs in other pods: mount a ReadWriteMany volume in them and "
                "in this pod, and set the variable to the mount path"
            )
        self.volume = Path(volume).resolve()
        self.folder = self.volume / "jobs" / job

    def reset(self) -> None:
        """Create the folder, empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def stage_in(self, path: Path) -> Path:
        """Return the path of an artifact relative to the volume; it is copied unless it is on the volume already."""
        if path.resolve().is_relative_to(self.volume):
            return path.resolve().relative_to(self.volume)
        target = self.folder / "in" / str(len(list(self.folder.glob("in/*"))))
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, target)
        return target.relative_to(self.volume)

    def stage_out(self, name: str, target: Path) -> None:
        """Copy the job's output `name` to the step's output path."""
        source = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, target)

    def write_error(self, error: errors.VlmflowError) -> None:
        """Store a user's mistake for the step."""
        (self.folder / _ERROR).write_text(f"{type(error).__name__}\n{error}", encoding="utf-8")

    def raise_error(self) -> None:
        """Raise the error that `write_error` stored, if any."""
        file = self.folder / _ERROR
        if file.exists():
            name, message = file.read_text(encoding="utf-8").split("\n", 1)
            raise getattr(errors, name)(message)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
