"""Loads the registry's champion as pipeline artifacts."""

import json
import logging
import shutil
from pathlib import Path

from vlmflow.errors import ModelError
from vlmflow.tracking import mlflow_store
from vlmflow.tracking.registry import champion_version, download, format_versions

logger = logging.getLogger(__name__)


def load_champion(name: str, model: Path, scores: Path, version: Path) -> str:
    """Write the checkpoint of the champion of `name`, its registered scores and `version.json` to three folders.

    Returns:
        Its URI, `models:/name/version`.

    Raises:
        ModelError: `name` has no champion.
        ServiceError: MLflow cannot be reached.
    """
    mlflow_store.client()
    with mlflow_store.service_errors():
        current = champion_version(name)
        if current is None:
            raise ModelError(
                f"models:/{name}@champion: there is no champion to monitor; registered: {format_versions()}"
            )
        folder = download(current.uri)
    shutil.copytree(folder / "model", model, dirs_exist_ok=True)
    shutil.copytree(folder / "scores", scores, dirs_exist_ok=True)
    version.mkdir(parents=True, exist_ok=True)
    content = {"name": current.name, "version": current.version, "uri": current.uri, "model_hash": current.model_hash}
    (version / "version.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    logger.info("%s is the champion", current.uri)
    return current.uri
