"""Loads the model that a fine-tuning starts from, as a pipeline artifact."""

import logging
import shutil
from pathlib import Path

from pydantic import Field

from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.config.section import Section
from vlmflow.errors import ModelError
from vlmflow.serving.resolve import resolve

logger = logging.getLogger(__name__)


class BaseModelConfig(Section):
    """The model that a fine-tuning starts from."""

    model: str = Field(
        default="models:/vlm@champion",
        min_length=1,
        description="Folder of a checkpoint or of a run, registered version (`models:/vlm@champion`), or `owner/name` "
        "on the Hugging Face hub.",
    )


def load_base_model(config: BaseModelConfig, out: Path) -> Checkpoint:
    """Copy the model to the folder `out`.

    Raises:
        ModelError: there is no such model, or it cannot be downloaded.
    """
    name = config.model
    is_on_hub = name.count("/") == 1 and ":" not in name and not Path(name).exists()
    source = _download(name) if is_on_hub else resolve(name)
    shutil.copytree(source, out, dirs_exist_ok=True)
    loaded = Checkpoint(out)
    logger.info("%s: %s, checkpoint %s", name, loaded.card.get("family") or "a model of transformers", loaded.hash[:12])
    return loaded


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:  # the hub and the network raise many types
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"base_model.model: {name!r}: no such folder, and not available on the Hugging Face hub: {reason}"
        ) from None
