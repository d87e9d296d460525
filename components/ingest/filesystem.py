"""Access to the files of a source: a local path, `s3://…` or any other URL that fsspec supports.

Credentials and endpoints come from the standard settings of each protocol: for S3 the environment variables
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or the role of the instance.
"""

import re
from pathlib import PurePosixPath

from upath import UPath

from components.ingest.split import SPLITS
from vlmflow.artifacts.addresses import is_remote
from vlmflow.artifacts.files import describe_missing, match, walk
from vlmflow.errors import DataError
from vlmflow.images.decoding import IMAGE_SUFFIXES


def open_path(path: str) -> UPath:
    """Return `path`, an existing file or folder, local or remote.

    Raises:
        DataError: it does not exist, its protocol is unknown, or it cannot be reached.
    """
    resolved = resolve_path(path)
    try:
        exists = resolved.exists()
    except Exception as error:  # each protocol raises its own types: credentials, network, permissions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be reached: {reason}; check the URL and the credentials") from None
    if not exists:
        raise DataError(f"ingest.path: no such folder or file: {describe_missing(path, [UPath('.').absolute()])}")
    return resolved


def matching_files(path: str, suffixes: tuple[str, ...]) -> list[UPath]:
    """Return the sorted files of `path`: the file, all files with a suffix below the folder, or all glob matches.

    Raises:
        DataError: no file matches.
    """
    root = resolve_path(path)
    if any(sign in path for sign in "*?[") and not root.exists():
        found = match(str(root))
    else:
        root = open_path(path)
        found = [file for file in walk(root) if file.name.lower().endswith(suffixes)] if root.is_dir() else [root]
    if not found:
        raise DataError(f"ingest.path: {path!r}: no {suffixes[0].lstrip('.')} file found")
    return found


def image_files(root: UPath) -> list[UPath]:
    """Return every file below `root` with an image suffix, sorted."""
    return [file for file in walk(root) if file.suffix.lower() in IMAGE_SUFFIXES]


def relative_name(file: UPath, root: UPath) -> str:
    """Return the path of `file` relative to `root`, the same for local and remote roots."""
    return str(file.relative_to(root))


def split_from_folders(name: str) -> str:
    """Return the split that a folder in `name` gives (`images/val2017`, `testing_data`): train, test or ""."""
    return next(filter(None, map(split_from_word, reversed(PurePosixPath(name).parent.parts))), "")


def split_from_word(name: str) -> str:
    """Return the split that the name of a folder or file gives (`instances_val2017`): train, test or ""."""
    found = {SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else ""


def resolve_path(path: str) -> UPath:
    """Return `path` as a local or remote path, which need not exist.

    Raises:
        DataError: its protocol is unknown.
    """
    try:
        resolved = UPath(path).expanduser() if not is_remote(path) else UPath(path)
        _ = resolved.fs  # imports the package of the protocol
    except (ValueError, ImportError) as error:
        raise DataError(
            f"ingest.path: {path!r}: {error}; use a local path or a protocol that fsspec supports"
        ) from None
    return resolved
