"""Pairs to the batches that every pretraining family takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from components import preprocessing
from components.inference import image_processor, tokenize_captions, tokenizer
from components.pixels import decode, squares


class Batches:
    """Rows of a square picture and a caption to a batch of tensors.

    A batch holds `pixel_values` (N, 3, H, W) where the model has an image processor, `input_ids` and
    `attention_mask` (N, L) where it has a tokenizer. What is hidden from a masked model is drawn in its forward.
    """

    def __init__(self, model: Any, processor: Any):
        self.config = model.config
        self.pictures, self.words = image_processor(processor), tokenizer(processor)
        self.raw = self.config.model_type == "sketch"  # takes bytes, and squeezes pictures its own way

    def rows(self, images: Sequence[bytes], captions: Sequence[str]) -> list[dict[str, Any]]:
        """Decode every picture once, before the first step."""
        if self.pictures is None:
            return [{"caption": caption} for caption in captions]
        if self.raw:
            pixels: Any = squares(images, self.config.image_size)
        else:
            pixels = [preprocessing.squares(self.pictures, [decode(image)])[0].numpy() for image in images]
        return [{"pixels": p, "caption": caption} for p, caption in zip(pixels, captions, strict=True)]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch: dict[str, Any] = {}
        if self.words is not None:
            batch.update(tokenize_captions(self.words, self.config, [row["caption"] for row in rows]))
        if self.pictures is not None:
            pixels = torch.from_numpy(np.stack([row["pixels"] for row in rows]))
            batch["pixel_values"] = pixels if self.raw else preprocessing.normalised(self.pictures, pixels)
        return batch
