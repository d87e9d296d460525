"""Fetch data by revision: the outputs of `dvc.yaml` at a commit, from DVC's cache or its remote."""

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


def fetch(config: FetchConfig, data_rev: str, outputs: dict[str, Path]) -> str:
    """Write the artifacts of a revision; the shards of datasets are verified, and their cards get the commit.

    Args:
        config: the repository, and the paths of the artifacts in it.
        data_rev: a commit, a tag or a branch of `config.repo`.
        outputs: name of an artifact, as in the config → path to write it to.

    Returns:
        The commit, 40 hex digits.

    Raises:
        DataError: the repository, the revision or the artifact does not exist, its data is neither in the cache nor
            in the remote, or it does not match its card.
    """
    if not data_rev:
        raise DataError(f"data_rev: is empty; set a commit, a tag or a branch of {config.repo}")
    files = _open(config, data_rev)
    commit: str = files.repo.get_rev()
    for name, output in outputs.items():
        path = getattr(config, name)
        _download(files, path, output, f"{config.repo}: {path} at {data_rev}")
        if (output / "card.json").exists():
            dataset = Dataset(output)
            dataset.verify()
            replace(dataset.card, revision=commit).save(output)
    logger.info("%s of %s at %s (%s)", ", ".join(outputs), config.repo, data_rev, commit[:12])
    return commit


def _open(config: FetchConfig, data_rev: str) -> "DVCFileSystem":
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.scm import CloneError, RevError, SCMError

    try:
        # `repo` opens the repository, so that its errors are raised here.
        files = DVCFileSystem(config.repo, rev=data_rev, remote=config.remote or None)
        files.repo.get_rev()
    except RevError:
        raise DataError(f"data_rev: {data_rev!r}: no such revision in {config.repo}; see `git log --all`") from None
    except (CloneError, NotDvcRepoError, SCMError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"fetch.repo: {config.repo!r}: not a git repository with DVC data: {reason}") from None
    except DvcException as error:
        raise DataError(f"fetch.repo: {config.repo!r}: {' '.join(str(error).split())}") from None
    remotes = files.repo.config["remote"]
    if config.remote and config.remote not in remotes:
        known = ", ".join(sorted(remotes)) or "none"
        raise DataError(f"fetch.remote: {config.remote!r}: no such remote; {config.repo} has {known}")
    return files


def _download(files: "DVCFileSystem", path: str, output: Path, source: str) -> None:
    if not files.exists(path):
        raise DataError(f"{source}: not found; create it with a stage of dvc.yaml or `dvc add`, and commit dvc.lock")
    try:
        files.get(path, str(output), recursive=files.isdir(path))
    except Exception as error:  # the client of a remote has its own errors: botocore's, aiohttp's, …
        shutil.rmtree(output, ignore_errors=True)
        output.unlink(missing_ok=True)
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: not in DVC's cache or remote: {reason}; run `dvc push` first") from error
