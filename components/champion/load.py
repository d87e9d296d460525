"""The registry's champion as artifacts of a pipeline."""

import json
import logging
import shutil
from pathlib import Path

from vlmflow.errors import ModelError
from vlmflow.tracking import mlflow_run
from vlmflow.tracking.registry import champion, download, listing

logger = logging.getLogger(__name__)


def load_champion(name: str, model: Path, scores: Path, version: Path) -> str:
    """Write the checkpoint of the champion of `name`, its registered scores and `version.json`.

    Returns:
        Its address, `models:/name/version`.

    Raises:
        ModelError: `name` has no champion.
        ServiceError: MLflow does not answer.
    """
    mlflow_run.client()
    with mlflow_run.answering(mlflow_run.store()):
        held = champion(name)
        if held is None:
            raise ModelError(f"models:/{name}@champion: there is none to watch; registered: {listing()}")
        folder = download(held.uri)
    shutil.copytree(folder / "model", model, dirs_exist_ok=True)
    shutil.copytree(folder / "scores", scores, dirs_exist_ok=True)
    version.mkdir(parents=True, exist_ok=True)
    written = {"name": held.name, "version": held.version, "uri": held.uri, "model_hash": held.model_hash}
    (version / "version.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    logger.info("%s is the champion", held.uri)
    return held.uri
