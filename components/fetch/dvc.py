"""Data by revision: what `dvc.yaml` made at a commit, out of DVC's cache or its remote."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from components.fetch.config import FetchConfig
from vlmflow.artifacts.dataset import Dataset
from vlmflow.errors import DataError

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

logger = logging.getLogger(__name__)


def fetch(section: FetchConfig, data_rev: str, places: dict[str, Path]) -> str:
    """Write artifacts as they are at a revision; a dataset's shards are checked, and its card names the commit.

    Args:
        data_rev: a commit, a tag or a branch of `section.repo`.
        places: an artifact's name, as the section has it → where it is written.

    Returns:
        The commit, 40 hex digits.

    Raises:
        DataError: no such repository, revision or artifact, its data is neither in the cache nor in the
            remote, or it is not what its card says.
    """
    if not data_rev:
        raise DataError(f"data_rev: name a commit, a tag or a branch of {section.repo}")
    files = _open(section, data_rev)
    commit: str = files.repo.get_rev()
    for name, place in places.items():
        path = getattr(section, name)
        _get(files, path, place, f"{section.repo}: {path} at {data_rev}")
        if (place / "card.json").exists():
            dataset = Dataset(place)
            dataset.verify()
            replace(dataset.card, revision=commit).save(place)
    logger.info("%s of %s at %s (%s)", ", ".join(places), section.repo, data_rev, commit[:12])
    return commit


def _open(section: FetchConfig, data_rev: str) -> "DVCFileSystem":
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.scm import CloneError, RevError, SCMError

    try:
        # `repo` is opened here, so that what is wrong with it is said now.
        files = DVCFileSystem(section.repo, rev=data_rev, remote=section.remote or None)
        files.repo.get_rev()
    except RevError:
        raise DataError(f"data_rev: {data_rev!r}: no such revision in {section.repo}; see `git log --all`") from None
    except (CloneError, NotDvcRepoError, SCMError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"fetch.repo: {section.repo!r}: no git repository with DVC's data here: {said}") from None
    except DvcException as error:
        raise DataError(f"fetch.repo: {section.repo!r}: {' '.join(str(error).split())}") from None
    remotes = files.repo.config["remote"]
    if section.remote and section.remote not in remotes:
        known = ", ".join(sorted(remotes)) or "none"
        raise DataError(f"fetch.remote: {section.remote!r}: no such remote; {section.repo} has {known}")
    return files


def _get(files: "DVCFileSystem", path: str, place: Path, what: str) -> None:
    if not files.exists(path):
        raise DataError(f"{what}: not there; a stage of dvc.yaml or `dvc add` makes it, and dvc.lock must be committed")
    try:
        files.get(path, str(place), recursive=files.isdir(path))
    except Exception as error:  # a remote's client raises errors of its own: botocore's, aiohttp's, ...
        shutil.rmtree(place, ignore_errors=True)
        place.unlink(missing_ok=True)
        said = " ".join(str(error).split())
        raise DataError(f"{what}: cannot be had from DVC's cache or remote: {said}; `dvc push` it first") from error
