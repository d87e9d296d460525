"""The step cache: an unchanged step is not run again.

Each finished step has an entry with the paths and content hashes of its outputs. If the same step is due again, the
outputs are verified against the entry and linked into the new run. If an output was changed or deleted, the entry is
not used and the step runs.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from vlmflow.artifacts.hashing import content_hash

FOLDER = ".step_cache"  # in VLMFLOW_HOME


class StepCache:
    """The entries of finished steps, in a folder.

    Args:
        folder: the folder of the entries; created when the first one is stored.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def lookup(self, key: str, outputs: dict[str, Path]) -> dict[str, Any] | None:
        """Link the outputs of entry `key` to the paths `outputs`; None if there is no entry or it is outdated."""
        file = self.folder / f"{key}.json"
        if not file.exists():
            return None
        entry = json.loads(file.read_text(encoding="utf-8"))
        if set(entry["outputs"]) != set(outputs):
            return None
        for output in entry["outputs"].values():
            if content_hash(Path(output["path"])) != output["hash"]:
                return None
        for name, path in outputs.items():
            _link(Path(entry["outputs"][name]["path"]), path)
        return entry

    def store(self, key: str, outputs: dict[str, Path], **metadata: Any) -> dict[str, Any]:
        """Write entry `key`: the paths and hashes of the outputs, and further JSON values; return it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        hashed = {name: {"path": str(path), "hash": content_hash(path)} for name, path in outputs.items()}
        entry = {"outputs": hashed, **metadata}
        partial = self.folder / f"{key}.{os.getpid()}.partial"
        partial.write_text(json.dumps(entry, indent=1), encoding="utf-8")
        partial.replace(self.folder / f"{key}.json")
        return entry


def _link(source: Path, target: Path) -> None:
    """Hard-link a file or all files of a folder; copy where the file system has no hard links."""
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
