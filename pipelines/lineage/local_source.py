"""The history that folders on this machine tell: the artifacts under the folder of runs, and the steps' records."""

import json
import os
from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from typing import Any

from pipelines.lineage.history import History, Step
from vlmflow.artifacts import provenance
from vlmflow.errors import DataError, ModelError

logger = getLogger(__name__)

_PASSED = ("mlartifacts", ".memo", ".shards", "steps")  # MLflow's copies are its own source's to tell of


def read(history: History, root: Path) -> None:
    """Add every artifact under `root`, and every step of its runs."""
    for folder in _folders(root):
        add(history, folder)
    lying: dict[str, list[str]] = {}
    for node in history.nodes.values():
        for place in node.places:
            lying.setdefault(place, []).append(node.id)
    for file in sorted(root.glob("*/steps/*.json")):
        if not file.parent.parent.is_symlink():  # runs/latest is a run that stands there already
            _ran(history, file.parent.parent, json.loads(file.read_text(encoding="utf-8")), lying)


def add(history: History, folder: Path) -> list[str]:
    """Add what lies in `folder`; returns the ids."""
    try:
        return [history.add(one, str(folder.resolve())).id for one in provenance.read(folder)]
    except (DataError, ModelError) as error:
        logger.warning("left out of the lineage: %s", error)
        return []


def _folders(root: Path) -> Iterator[Path]:
    """The folders that may be artifacts; not those of a run that is going on or was killed, nor a link's target."""
    for place, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in _PASSED and not name.endswith(".partial"))
        if "card.json" in files or "version.json" in files:
            names.clear()
            yield Path(place)
        elif any(file.endswith(".yaml") for file in files):
            yield Path(place)


def _ran(history: History, run: Path, record: dict[str, Any], lying: dict[str, list[str]]) -> None:
    pipeline = run / "mlflow_run_id"
    contents: dict[str, list[str]] = {}
    for output in record.get("outputs", {}).values():
        place = run.resolve().joinpath(*Path(output["path"]).parts[-2:])  # the folder of runs may have been moved
        if "hash" in output:
            contents[output["hash"]] = lying.get(str(place), [])
    step = Step(
        label=record["label"],
        run=run.name,
        mlflow_run=record.get("mlflow_run_id") or "",
        pipeline_run=pipeline.read_text(encoding="utf-8") if pipeline.exists() else "",
        cached=bool(record.get("cached")),
        inputs=list(record.get("inputs", {}).values()),
    )
    history.ran(step, contents)
