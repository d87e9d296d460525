"""Errors of a full or read-only disk, as one line for the user."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmflow.errors import SpaceError, VlmflowError

_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_FULL = re.compile(r"No space left on device|Disk quota exceeded|disk is full|os error (28|122)\b|Errno (28|122)\b")
_NEARLY_FULL = 2**20  # bytes; torch reports a failed write as an unexpected position in the file


@contextmanager
def space_errors(folder: Path) -> Iterator[None]:
    """Raise SpaceError, one line, for an error of the body because a file cannot be written.

    Libraries in C++ and Rust (safetensors, pyarrow, SQLite) have errors of their own for this, which are no OSError.

    Args:
        folder: where the body writes.
    """
    try:
        yield
    except VlmflowError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            path, reason = error.filename or folder, error.strerror
        elif _FULL.search(_chain(error)) or _free_bytes(folder) < _NEARLY_FULL:
            path, reason = folder, "no space left on device"
        else:
            raise
        raise SpaceError(f"{path}: cannot write: {reason}; free space, or write elsewhere") from error


def _chain(error: BaseException | None) -> str:
    """Return the messages of an error and of those that caused it."""
    messages = []
    while error is not None and len(messages) < 20:
        messages.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(messages)


def _free_bytes(folder: Path) -> int:
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free
