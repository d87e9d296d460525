"""SHA-256 hashes of files, folders and parameters."""

import hashlib
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vlmflow.artifacts.files import walk

_SETTLED = 2_000_000_000  # nanoseconds; a file may be changed again without a new time stamp before its clock ticks
_known: dict[tuple[int, ...], str] = {}  # state of a file → its hash; a run compares the same files many times


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as hex digits."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        state = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
        if state in _known:
            return _known[state]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - found.st_mtime_ns > _SETTLED:
        _known[state] = digest
    return digest


def content_hash(path: Path, exclude: Collection[str] = ()) -> str:
    """Return the SHA-256 of a file's content, or of a folder's relative file names and contents in sorted order.

    Args:
        path: a file or a folder; `absent` is returned if it does not exist.
        exclude: names of files to skip, in every folder.
    """
    if not path.exists():
        return "absent"
    digest = hashlib.sha256()
    if path.is_file():
        found = [path]
    else:  # with linked folders, which readers follow too
        found = sorted(Path(str(file)) for file in walk(path, hidden=True) if file.name not in exclude)
    for file in found:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
            digest.update(bytes.fromhex(file_sha256(file)))
    return digest.hexdigest()


def cache_key(**parts: Any) -> str:
    """Return a hash, 32 hex digits, of everything that determines a result; values are serialised as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
