"""A step whose inputs, recipe section and code are unchanged is not run again.

A finished step leaves a note of what went in and what came out, by content. The next time the same goes in,
what came out is checked against the note, byte for byte, and linked into the new run; an output that was
touched or deleted is not trusted, and the step runs again.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def content_hash(path: Path) -> str:
    """sha256 of a file, or of a folder's names and contents; `absent` where there is nothing."""
    if not path.exists():
        return "absent"
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def named(section: Any) -> dict[str, str]:
    """The content of each file and folder on this machine that a section of a recipe names, also by a pattern."""
    found = {}
    for text in filter(None, _texts(section)):
        for path in glob.glob(text, recursive=True) if glob.has_magic(text) else [text]:
            if Path(path).exists():
                found[path] = content_hash(Path(path))
    return found


def far(section: Any) -> bool:
    """Whether a section names a place elsewhere, such as s3://bucket, where things change without our seeing it."""
    return any("://" in text for text in _texts(section))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def key(**parts: Any) -> str:
    """The name of a note: a hash of everything that decides a step's outcome."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Memo:
    """Notes of finished steps, in a folder.

    Args:
        folder: where the notes are; made on the first note.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def recall(self, name: str, outputs: dict[str, Path]) -> dict[str, Any] | None:
        """Link what note `name` remembers to `outputs`; None where there is no note, or it is no longer true."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            return None
        note = json.loads(file.read_text(encoding="utf-8"))
        if set(note["outputs"]) != set(outputs):
            return None
        for output in note["outputs"].values():
            if content_hash(Path(output["path"])) != output["hash"]:
                return None
        for label, path in outputs.items():
            _link(Path(note["outputs"][label]["path"]), path)
        return note

    def remember(self, name: str, outputs: dict[str, Path], **facts: Any) -> dict[str, Any]:
        """Write note `name`: the outputs' places and contents, and further facts (JSON)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {label: {"path": str(path), "hash": content_hash(path)} for label, path in outputs.items()}
        note = {"outputs": found, **facts}
        beside = self.folder / f"{name}.{os.getpid()}.partial"
        beside.write_text(json.dumps(note, indent=1), encoding="utf-8")
        beside.replace(self.folder / f"{name}.json")
        return note


def _link(source: Path, target: Path) -> None:
    """Hard-link a file or a folder's files; copy where the file system has no links."""
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        _link_file(str(source), str(target))
    else:
        shutil.copytree(source, target, copy_function=_link_file, dirs_exist_ok=True)


def _link_file(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copy2(source, target)
    return target
