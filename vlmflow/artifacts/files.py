"""Files that users name: the walk through a folder, and the search for one file.

Paths are local or remote (`s3://…`), as `UPath`.
"""

import os
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from fsspec.utils import glob_translate
from upath import UPath

from vlmflow.artifacts.addresses import is_remote
from vlmflow.errors import DataError, RecordError

# How the name in an index may differ from the name of its file.
DIFFERENCES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("surrounding spaces", str.strip),
    ("backslashes", lambda name: name.replace("\\", "/")),
    ("percent-encoding", unquote),
    ("Unicode form (NFC or NFD)", lambda name: unicodedata.normalize("NFC", name)),
    ("letter case", str.casefold),
    ("suffix", lambda name: re.sub(r"\.\w{1,8}$", "", name)),
)
SHOWN_FOLDERS = 3


def walk(folder: UPath | Path, depth: int | None = None, *, hidden: bool = False) -> list[UPath]:
    """Return the files below `folder`, sorted; `depth` 1 is the folder alone, None is all levels.

    Links to folders are followed, except to a folder that contains the link. Hidden files and folders (`.DS_Store`,
    `._a.jpg`, `.git`) and `__MACOSX` are not data and are left out, unless `hidden` is set. A broken link is returned:
    its target is missing.

    Raises:
        DataError: a folder cannot be read.
    """
    root = UPath(folder)
    if isinstance(root, Path):
        try:
            names = _walk_local(str(root), (), depth, hidden)
        except OSError as error:
            raise DataError(f"{error.filename or root}: cannot be read: {error.strerror}") from None
    else:
        start = root.path.rstrip("/")
        found = (path[len(start) :].strip("/") for path in root.fs.find(root.path, maxdepth=depth))
        names = (name for name in found if name and (hidden or not any(map(_is_hidden, name.split("/")))))
    return sorted((root / name for name in names), key=str)


def match(pattern: str) -> list[UPath]:
    """Return the files that a glob pattern matches, sorted; `**` matches any number of folders.

    The longest beginning of the pattern that is an existing folder is taken literally, so that a folder may be named
    `set [v2]`.
    """
    parts = pattern.split("/")
    count = next((i for i, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts) - 1)
    while count < len(parts) - 1 and UPath("/".join(parts[: count + 1])).is_dir():
        count += 1
    root = UPath("/".join(parts[:count]) or ("/" if pattern.startswith("/") else "."))
    rest = [part if part == "**" else re.sub(r"\*+", "*", part) for part in parts[count:]]
    if not root.is_dir():
        return []
    expression = re.compile(glob_translate("/".join(rest)))
    files = walk(root, None if "**" in rest else len(rest))
    return [file for file in files if expression.match(str(file.relative_to(root)))]


def find_file(name: str, folders: Sequence[UPath]) -> UPath:
    """Return the file `name`: a URL, an absolute path, or a path relative to one of `folders`.

    Raises:
        RecordError: there is no such file, several folders have one, or it cannot be accessed.
    """
    candidates = [UPath(name)] if is_remote(name) else list(dict.fromkeys(folder / name for folder in folders))
    for file in candidates:
        if isinstance(file, Path):
            sys.audit("vlmflow.lookup", str(file))  # the step cache notices a file that is missing now
    try:
        found = [file for file in candidates if file.is_file()]  # false for pipes and devices
        others = [file for file in found[1:] if not _is_same(file, found[0])]
    except (OSError, ValueError) as error:
        raise RecordError("unreadable file", f"{name[:200]!r}: {error}") from None
    if others:
        raise RecordError("ambiguous name", f"{name!r}: both {found[0]} and {others[0]} exist; name its folder")
    if not found:
        raise RecordError("no such file", describe_missing(name, folders))
    return found[0]


def describe_missing(name: str, folders: Sequence[UPath]) -> str:
    """Return `name`, the folders that were searched, and the file whose name is nearly the same, if there is one."""
    if is_remote(name):
        return name[:200]
    places = [str(folder) for folder in dict.fromkeys(folders)]
    if len(places) > SHOWN_FOLDERS:
        places = [*places[:SHOWN_FOLDERS], f"{len(places) - SHOWN_FOLDERS} more folders"]
    if name.startswith("/"):
        places = []
    said = f"{name[:200]!r}" + (f" in {', '.join(places)}" if places else "")
    if any((folder / name).is_dir() for folder in folders):
        return f"{said}: it is a folder"
    near = [close for folder in folders if isinstance(folder, Path) for close in _near_misses(name, folder)]
    if not near:
        return said
    found, file = min(near, key=lambda one: (len(one[0]), one[1]))
    return f"{said}; there is {file!r}, which differs in {' and '.join(found)}"


def name_differences(name: str, other: str) -> list[str]:
    """Return in which of `DIFFERENCES` two names differ; [] if they are equal or differ in more."""
    if name == other or _canonical(name) != _canonical(other):
        return []
    needed = [what for what, _ in DIFFERENCES]
    for what in needed[::-1]:  # the suffix first: `A.JPG` and `a.jpg` differ in case
        fewer = [one for one in needed if one != what]
        if _canonical(name, fewer) == _canonical(other, fewer):
            needed = fewer
    return needed


def _walk_local(
    folder: str, above: tuple[tuple[int, int], ...], depth: int | None, hidden: bool, prefix: str = ""
) -> list[str]:
    status = Path(folder).stat()
    place = status.st_dev, status.st_ino
    if place in above or depth == 0:
        return []
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not hidden and _is_hidden(entry.name):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself
                is_folder = False
            if is_folder:
                below = None if depth is None else depth - 1
                names += _walk_local(entry.path, (*above, place), below, hidden, f"{prefix}{entry.name}/")
            elif entry.is_symlink() or entry.is_file():  # not a pipe or a device
                names.append(prefix + entry.name)
    return names


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_same(file: UPath, other: UPath) -> bool:
    return isinstance(file, Path) and isinstance(other, Path) and file.samefile(other)


def _canonical(name: str, ignored: Sequence[str] | None = None) -> str:
    """Return `name` without the given differences; None stands for all."""
    for what, change in DIFFERENCES:
        if ignored is None or what in ignored:
            name = change(name)
    return name


def _near_misses(name: str, folder: Path) -> list[tuple[list[str], str]]:
    """Return the files in the named folder, or in `folder` itself, with nearly the same name, and the differences."""
    *parents, last = unquote(name.strip()).replace("\\", "/").split("/")
    written = [what for what, change in DIFFERENCES[:3] if change(name) != name]  # undone by the line above
    place, way = Path("/") if name.startswith("/") else folder, ""
    try:
        for parent in filter(None, parents):
            if not (place / parent).is_dir():
                parent = next((n for n in _listing(place).get(_canonical(parent), []) if (place / n).is_dir()), None)
                if parent is None:
                    break
            place, way = place / parent, f"{way}{parent}/"
        else:
            names = _listing(place).get(_canonical(last), [])
            names = [one for one in names if (place / one).is_file()] or names
            if near := [(found, way + n) for n in names if (found := name_differences(name.lstrip("/"), way + n))]:
                return near
        files = [file for file in _listing(folder).get(_canonical(last), []) if (folder / file).is_file()]
    except OSError:  # a folder that cannot be listed has no hint
        return []
    return [(["folder", *written, *name_differences(last, file)], file) for file in files]


def _listing(folder: Path) -> dict[str, list[str]]:
    return _read_listing(str(folder), folder.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _read_listing(folder: str, changed: int) -> dict[str, list[str]]:
    """Return the names in a folder by their canonical form; `changed`, its time of change, renews the cache."""
    names: dict[str, list[str]] = {}
    for name in sorted(file.name for file in Path(folder).iterdir()):
        names.setdefault(_canonical(name), []).append(name)
    return names
