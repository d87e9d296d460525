"""The git revision of a source."""

import subprocess
from pathlib import Path


def source_revision(source: str) -> str:
    """Return the commit of the git repository that tracks `source`, or its `.dvc` file, or that of a parent folder.

    The suffix `-dirty` means that the tracked files have uncommitted changes. Returns "" if no repository tracks the
    source. Whether the data matches its `.dvc` file is not checked, because that reads all of it; use `dvc status`.
    """
    path = Path(source).expanduser().absolute()
    if not source or not path.exists():
        return ""  # synthetic, or remote
    dvc_files = (parent.with_name(f"{parent.name}.dvc") for parent in (path, *path.parents) if parent.name)
    tracked = [str(file) for file in (path, *(file for file in dvc_files if file.is_file()))]
    folder = path if path.is_dir() else path.parent
    if not _git(folder, "ls-files", "--", *tracked):
        return ""
    commit = _git(folder, "rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git(folder, "status", "--porcelain", "--", *tracked) else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "--no-optional-locks", *arguments], cwd=folder, capture_output=True, text=True, errors="replace"
        )
    except FileNotFoundError:  # git is not installed
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
