"""The folder that a step and the pods of its job share."""

import os
import shutil
from pathlib import Path

from vlmflow import errors
from vlmflow.errors import ServiceError

VOLUME = "VLMFLOW_SHARED"
ARGUMENTS = "arguments.json"  # of the function that a TrainJob calls


class Place:
    """A job's folder on a volume that many pods mount; VLMFLOW_SHARED says where, in each of them.

    It holds what goes into the job and what comes out, and `refusal` when the job ended by a mistake of the user, which
    no second try would mend.

    Raises:
        ServiceError: there is no such volume.
    """

    def __init__(self, job: str):
        volume = os.environ.get(VOLUME, "")
        if not Path(volume).is_dir() or not volume:
            raise ServiceError(
                f"{VOLUME}={volume}: names no folder; {job} runs in other pods, so mount a ReadWriteMany volume in "
                "them and in this one, and set it to where"
            )
        self.volume = Path(volume).resolve()
        self.folder = self.volume / "jobs" / job

    def empty(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def bring(self, path: Path) -> Path:
        """Where on the volume an artifact is, which may be mounted elsewhere in a pod: itself, or else a copy."""
        if path.resolve().is_relative_to(self.volume):
            return path.resolve().relative_to(self.volume)
        target = self.folder / "in" / str(len(list(self.folder.glob("in/*"))))
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, target)
        return target.relative_to(self.volume)

    def take(self, name: str, target: Path) -> None:
        """Copy what the job wrote under `name` to where the step writes it."""
        source = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, target)

    def refuse(self, error: errors.VlmflowError) -> None:
        """Leave a user's mistake for the step to raise."""
        (self.folder / "refusal").write_text(f"{type(error).__name__}\n{error}", encoding="utf-8")

    def raise_refusal(self) -> None:
        """Raise what `refuse` left."""
        refusal = self.folder / "refusal"
        if refusal.exists():
            kind, message = refusal.read_text(encoding="utf-8").split("\n", 1)
            raise getattr(errors, kind)(message)

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
