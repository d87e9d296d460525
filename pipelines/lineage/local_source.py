"""Lineage from this machine: the artifacts under the folder of runs, and the steps' records."""

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

_SKIPPED_FOLDERS = ("mlartifacts", ".step_cache", ".shards", "steps")  # MLflow's own copies come from `mlflow_source`


def read(history: History, root: Path) -> None:
    """Add every artifact under `root`, and every step of its runs."""
    for folder in _folders(root):
        add(history, folder)
    ids_by_folder: dict[str, list[str]] = {}
    for node in history.nodes.values():
        for place in node.places:
            ids_by_folder.setdefault(place, []).append(node.id)
    for file in sorted(root.glob("*/steps/*.json")):
        if not file.parent.parent.is_symlink():  # runs/latest is a link to a run that is read already
            _add_step(history, file.parent.parent, json.loads(file.read_text(encoding="utf-8")), ids_by_folder)


def add(history: History, folder: Path) -> list[str]:
    """Add the artifacts in `folder`; return their ids."""
    try:
        return [history.add(one, str(folder.resolve())).id for one in provenance.read_origins(folder)]
    except (DataError, ModelError) as error:
        logger.warning("not included in the lineage: %s", error)
        return []


def _folders(root: Path) -> Iterator[Path]:
    """Yield folders that may hold artifacts; skip partial outputs of running or killed steps, and links."""
    for place, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in _SKIPPED_FOLDERS and not name.endswith(".partial"))
        if "card.json" in files or "version.json" in files:
            names.clear()
            yield Path(place)
        elif any(file.endswith(".yaml") for file in files):
            yield Path(place)


def _add_step(history: History, run: Path, record: dict[str, Any], ids_by_folder: dict[str, list[str]]) -> None:
    pipeline = run / "mlflow_run_id"
    contents: dict[str, list[str]] = {}
    for output in record.get("outputs", {}).values():
        place = run.resolve().joinpath(
            *Path(output["path"]).parts[-2:]
        )  # resolved again: the folder of runs may have moved
        if "hash" in output:
            contents[output["hash"]] = ids_by_folder.get(str(place), [])
    step = Step(
        label=record["label"],
        run=run.name,
        mlflow_run=record.get("mlflow_run_id") or "",
        pipeline_run=pipeline.read_text(encoding="utf-8") if pipeline.exists() else "",
        cached=bool(record.get("cached")),
        inputs=list(record.get("inputs", {}).values()),
    )
    history.add_step(step, contents)
