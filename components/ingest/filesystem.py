"""Where a source's files are: a local path, `s3://…` or any other address that fsspec knows.

Credentials and endpoints are the protocol's own: for S3 the standard AWS variables (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) or an instance's role.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

from upath import UPath

from components.ingest.split import SPLITS
from vlmflow.artifacts.addresses import is_remote
from vlmflow.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".ico")


def open_path(path: str) -> UPath:
    """Return `path` as a place that exists: a file or a folder, here or far away.

    Raises:
        DataError: nothing is there, its protocol is not known, or it cannot be reached.
    """
    found, missing = resolve_path(path), f"ingest.path: {path!r}: no such folder or file"
    try:
        exists = found.exists()
    except Exception as error:  # each protocol has errors of its own: no credentials, no route, no right
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be reached: {reason}; check the address and its credentials") from None
    if not exists:
        raise DataError(missing)
    return found


def matching_files(path: str, suffix: str) -> list[UPath]:
    """Return the files that `path` stands for: itself, all with `suffix` below a folder, or a glob's matches, sorted.

    Raises:
        DataError: there is none.
    """
    if any(sign in path for sign in "*?["):
        cut = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
        root = resolve_path(cut or ("/" if path.startswith("/") else "."))
        found = root.glob(path[len(cut) :].lstrip("/"))
    else:
        root = open_path(path)
        found = root.rglob(f"*{suffix}") if root.is_dir() else [root]
    there = sorted((file for file in found if file.is_file()), key=str)
    if not there:
        raise DataError(f"ingest.path: {path!r}: no {suffix.lstrip('.')} file here")
    return there


def image_files(root: UPath) -> list[UPath]:
    """Return every file below `root` that is named like a picture, sorted."""
    return sorted((file for file in root.rglob("*.*") if file.suffix.lower() in IMAGE_SUFFIXES), key=str)


def relative_name(file: UPath, root: UPath) -> str:
    """Return the file's name as seen from `root`, the same wherever `root` is."""
    return str(file.relative_to(root))


def split_from_folders(name: str) -> str:
    """Return train or test where one of the folders in `name` says so (`images/val2017`, `testing_data`), else ""."""
    for part in reversed(PurePosixPath(name.lower()).parent.parts):
        stem = re.sub(r"(_data|[\d_-])+$", "", part)
        if stem in SPLITS:
            return SPLITS[stem]
    return ""


def stream_json(file: UPath, prefix: str) -> Iterator[Any]:
    """Stream what stands at `prefix` of one JSON document (`item`: of an array; `images.item`: of an array in it).

    Raises:
        DataError: the file is no JSON, or cut off.
    """
    import ijson

    try:
        with file.open("rb") as handle:
            for item in ijson.items(handle, prefix, use_float=True):
                yield float(item) if isinstance(item, Decimal) else item
    except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: not JSON: {reason}; get the file again") from None


def resolve_path(path: str) -> UPath:
    """Return `path` as a place, whether or not something is there.

    Raises:
        DataError: its protocol is not known.
    """
    try:
        found = UPath(path).expanduser() if not is_remote(path) else UPath(path)
        _ = found.fs  # imports what the protocol needs
    except (ValueError, ImportError) as error:
        raise DataError(f"ingest.path: {path!r}: {error}; local paths and fsspec's protocols are known") from None
    return found
