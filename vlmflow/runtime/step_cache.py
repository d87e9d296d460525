"""The step cache: an unchanged step is not run again.

Each finished step has an entry with the paths and content hashes of its outputs, and of the files that it read if the
recipe does not name them. If the same step is due again, both are verified against the entry, and the outputs are
linked into the new run. If a file was changed or deleted, the entry is not used and the step runs.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from vlmflow.artifacts import file_reads
from vlmflow.artifacts.hashing import cache_key, content_hash

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
        for file in self.folder.glob(f"{key}*.json"):
            entry = json.loads(file.read_text(encoding="utf-8"))
            if set(entry["outputs"]) == set(outputs) and _is_valid(entry):
                for name, path in outputs.items():
                    _link(Path(entry["outputs"][name]["path"]), path)
                return entry
        return None

    def store(
        self, key: str, outputs: dict[str, Path], reads: dict[str, str] | None = None, **metadata: Any
    ) -> dict[str, Any]:
        """Write entry `key`: the paths and hashes of the outputs, and further JSON values; return it.

        Args:
            reads: hashes of the files that the step read, as `file_reads` returns them; None if this is not recorded.
                A key has an entry for each state of its files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = {"outputs": hash_outputs(outputs), "reads": reads or {}, **metadata}
        name = key if reads is None else f"{key}-{cache_key(reads=reads)}"
        partial = self.folder / f"{name}.{os.getpid()}.partial"
        partial.write_text(json.dumps(entry, indent=1), encoding="utf-8")
        partial.replace(self.folder / f"{name}.json")
        return entry


def hash_outputs(outputs: dict[str, Path]) -> dict[str, dict[str, str]]:
    """Return the path and the content hash of each output, as an entry and a step's record have them."""
    return {name: {"path": str(path), "hash": content_hash(path)} for name, path in outputs.items()}


def _is_valid(entry: dict[str, Any]) -> bool:
    """Whether the files that the step read and its outputs are as they were."""
    return file_reads.are_unchanged(entry.get("reads", {})) and all(
        content_hash(Path(output["path"])) == output["hash"] for output in entry["outputs"].values()
    )


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
