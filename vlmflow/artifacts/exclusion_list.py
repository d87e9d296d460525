"""The exclusion list: images and pairs that were taken down and must not enter a dataset again.

Each line holds 32 hex digits: the uid of a pair, or the uid of an image alone (`dataset.uid` of its bytes), which
excludes every pair with that image, whatever its texts. `#` starts a comment.
"""

import re
from pathlib import Path

from vlmflow.artifacts.text_files import read_lines
from vlmflow.errors import DataError

_ENTRY = re.compile(r"[0-9a-f]{32}")


def read(path: str | Path) -> frozenset[str]:
    """Return the uids of a list.

    Raises:
        DataError: the file cannot be read, or a line is not a uid.
    """
    try:
        lines = read_lines(Path(path))
    except DataError as error:
        raise DataError(f"exclude {error}; `vlmflow takedown` writes this list") from None
    uids = set()
    for number, line in enumerate(lines, 1):
        entry = line.partition("#")[0].strip()
        if entry and not _ENTRY.fullmatch(entry):
            raise DataError(f"exclude {path}: line {number}: {entry[:40]!r} is not a uid; write 32 hex digits per line")
        uids.add(entry)
    return frozenset(uids - {""})


def add(path: Path, entries: dict[str, str]) -> None:
    """Append the entries that the list does not contain yet; the file is created if it does not exist.

    Args:
        path: the list.
        entries: uid → description, written as a comment.

    Raises:
        DataError: the existing file is not an exclusion list, or it cannot be written.
    """
    listed = read(path) if path.exists() else frozenset[str]()
    lines = [f"{uid}  # {description}\n" for uid, description in entries.items() if uid not in listed]
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise DataError(f"{path}: cannot write the file: {error.strerror}; choose another path with --out") from None
