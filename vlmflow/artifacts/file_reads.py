"""The files that a step reads, recorded while it reads them, so that an earlier result is used only if none changed.

A recipe does not name every file of a source: an index names images elsewhere, a link points to another disk. So the
files are recorded as this process opens them, with the folders that it lists and the names that it looks for in vain.
A connection to a server is recorded too, because a remote file may change unseen.
"""

import hashlib
import os
import socket
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmflow.artifacts.hashing import file_sha256

ABSENT = "absent"
_SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr/lib", "/usr/share", "/lib", "/lib64",
           *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")))  # fmt: skip
_EVENTS = ("open", "os.listdir", "os.scandir", "vlmflow.lookup", "socket.connect")
_READ_ONLY = ~(os.O_WRONLY | os.O_RDWR)

_active: list["FileReads"] = []  # those that record now
_hooked = False  # an audit hook cannot be removed


class FileReads:
    """The files that this process reads while `recording`.

    Args:
        exclude: folders that do not count, such as those of the outputs and of the code.

    Attributes:
        is_remote: whether the process connected to a server.
    """

    def __init__(self, exclude: Iterable[Path] = ()):
        cache = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
        places = {str(Path(place).absolute()) for place in (*_SYSTEM, cache, *exclude)}
        self._excluded = tuple(f"{place}{os.sep}" for place in places)
        self._seen: dict[str, tuple[int, ...] | None] = {}  # path → its state when it was opened
        self.is_remote = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what any thread of this process reads."""
        global _hooked
        if not _hooked:
            sys.addaudithook(_on_event)
            _hooked = True
        _active.append(self)
        try:
            yield
        finally:
            _active.remove(self)

    def add(self, path: str) -> None:
        """Record that `path` was opened, listed or looked for."""
        absolute = str(Path(path).absolute())
        if absolute not in self._seen and not f"{absolute}{os.sep}".startswith(self._excluded):
            self._seen[absolute] = _state(absolute)

    def hashes(self) -> dict[str, str] | None:
        """Return the content hash of each file, the hash of the names in each folder, and `absent` for missing files.

        Hidden files of a folder do not count, because readers skip them (`.DS_Store`).

        Paths below the working directory are relative to it. None if the outcome may not be repeatable: a file was
        changed after it was opened, or a server was asked.
        """
        if self.is_remote or any(_state(path) != state for path, state in self._seen.items()):
            return None
        here = f"{Path.cwd()}{os.sep}"
        return {path.removeprefix(here): _hash(path) for path in sorted(self._seen)}

    def link(self, folder: Path) -> None:
        """Replace the content of `folder` by links to what was read, as a dependency for DVC.

        `folder`/files has a link to each file; DVC does not see the links to folders in it. `folder`/root is a link to
        the outermost folder that was listed, or to `files`. Its files have no link of their own.
        """
        files = folder / "files"
        files.mkdir(parents=True, exist_ok=True)
        for old in files.iterdir():
            if old.is_symlink():
                old.unlink()
        paths = [Path(path) for path in sorted(self._seen)]
        root = next((path for path in paths if path.is_dir()), files.absolute())
        _replace_link(folder / "root", root)
        for path in paths:
            if path.is_file() and not path.resolve().is_relative_to(root.resolve()):
                _replace_link(files / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}{path.suffix}", path)


def _replace_link(link: Path, target: Path) -> None:
    """Let `link` point to `target`: relative below the working directory, so that the repository can be moved."""
    inside = target.is_relative_to(Path.cwd())
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent.absolute()) if inside else target)


def are_unchanged(hashes: Mapping[str, str]) -> bool:
    """Whether all files and folders still have the hashes that `FileReads.hashes` returned."""
    return all(_hash(path) == digest for path, digest in hashes.items())


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    """Receive an audit event of the interpreter; see sys.addaudithook."""
    if not _active or event not in _EVENTS:
        return
    if event == "socket.connect":
        if arguments[0].family in (socket.AF_INET, socket.AF_INET6):
            for reads in _active:
                reads.is_remote = True
        return
    if event == "open" and arguments[2] & ~_READ_ONLY:
        return
    path = "." if arguments[0] is None else arguments[0]
    if not isinstance(path, int):
        for reads in _active:
            reads.add(os.fsdecode(path))


def _state(path: str) -> tuple[int, ...] | None:
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _hash(path: str) -> str:
    place = Path(path)
    try:
        if place.is_dir():
            names = "\0".join(sorted(entry.name for entry in place.iterdir() if not entry.name.startswith(".")))
            return f"folder {hashlib.sha256(os.fsencode(names)).hexdigest()}"
        return file_sha256(place) if place.is_file() else ABSENT
    except OSError as error:
        return f"unreadable: {error.strerror}"
