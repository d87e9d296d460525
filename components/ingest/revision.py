"""Which revision of its repository a source is at."""

import subprocess
from pathlib import Path


def source_revision(source: str) -> str:
    """The commit of the git repository that tracks `source`, or the `.dvc` file of it or of a folder above it.

    `-dirty` follows where what git tracks of it is not as committed; "" stands for a source that no repository
    tracks. Whether the data is what its `.dvc` file says is for `dvc status` to find: that reads all of it.
    """
    path = Path(source).expanduser().absolute()
    if not source or not path.exists():
        return ""  # drawn here, or at an address
    beside = (place.with_name(f"{place.name}.dvc") for place in (path, *path.parents) if place.name)
    tracked = [str(place) for place in (path, *(file for file in beside if file.is_file()))]
    folder = path if path.is_dir() else path.parent
    if not _git(folder, "ls-files", "--", *tracked):
        return ""
    commit = _git(folder, "rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git(folder, "status", "--porcelain", "--", *tracked) else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments], cwd=folder, capture_output=True, text=True, errors="replace"
        )
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
