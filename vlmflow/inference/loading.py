"""Load a checkpoint for evaluation and serving."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

import models.tiny.build  # noqa: F401  registers the family with the Auto classes
from models.zoo import EMBEDDING, GENERATIVE, ZOO
from vlmflow.artifacts.checkpoint import Checkpoint, load_weights
from vlmflow.errors import ModelError
from vlmflow.inference import inputs


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, with its processor, card and abilities."""

    model: Any
    processor: Any
    card: dict[str, Any]
    abilities: frozenset[str]

    @property
    def image_processor(self) -> Any:
        """The image processor, or None for a text-only model."""
        return inputs.image_processor(self.processor)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or None for an image-only model."""
        return inputs.tokenizer(self.processor)

    @property
    def box_convention(self) -> str:
        """How the model writes boxes: as its processor declares, by default in pixels."""
        return getattr(self.processor, "box_convention", "pixels")


def load(path: str | Path) -> LoadedModel:
    """Load a model folder for inference, on the GPU if there is one.

    A folder without a family of the zoo in its card loads with transformers' Auto classes. Code in the folder is never
    run: unless `trust_remote_code` is False, transformers asks on the terminal.

    Raises:
        ModelError: the folder holds no model, transformers cannot load it, or weights are missing or unknown.
    """
    checkpoint = Checkpoint(path)
    family = ZOO.get(checkpoint.card.get("family", ""))
    try:
        if family:
            auto, abilities = family.model_class, family.abilities
        else:
            architectures = AutoConfig.from_pretrained(path, trust_remote_code=False).architectures or []
            generates = any("Generation" in name for name in architectures)
            auto, abilities = (AutoModelForImageTextToText, GENERATIVE) if generates else (AutoModel, EMBEDDING)
        model = load_weights(auto, path)
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{path}: needs code of its own, which is never run; give a checkpoint whose class transformers has"
            ) from error
        raise ModelError(f"{path}: cannot be loaded: {' '.join(str(error).split())}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return LoadedModel(model.eval().to(device), processor, checkpoint.card, abilities)
