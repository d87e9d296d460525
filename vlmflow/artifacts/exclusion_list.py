"""The exclusion list: what was taken down and may not come back.

A line holds 32 hex digits: the uid of a pair, or that of a picture alone (`dataset.uid` of its bytes), which stands
for every pair of that picture whatever its texts. `#` begins a comment.
"""

import re
from pathlib import Path

from vlmflow.errors import DataError

_ENTRY = re.compile(r"[0-9a-f]{32}")


def read(path: str | Path) -> frozenset[str]:
    """The uids that a list holds.

    Raises:
        DataError: it cannot be read, or a line is none of ours.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"exclude {path}: cannot be read: {error}; `vlmflow takedown` writes such a list") from None
    found = set()
    for number, line in enumerate(lines, 1):
        entry = line.partition("#")[0].strip()
        if entry and not _ENTRY.fullmatch(entry):
            raise DataError(f"exclude {path}: line {number}: {entry[:40]!r} is no uid; give 32 hex digits a line")
        found.add(entry)
    return frozenset(found - {""})


def add(path: Path, entries: dict[str, str]) -> None:
    """Append the `entries` (uid → what it is, a comment) that the list does not hold; it is made if it is not there.

    Raises:
        DataError: what is there is no such list, or it cannot be written.
    """
    held = read(path) if path.exists() else frozenset[str]()
    lines = [f"{uid}  # {said}\n" for uid, said in entries.items() if uid not in held]
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; give another place with --out") from None
