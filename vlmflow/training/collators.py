"""Pairs to the batches that every pretraining family takes."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmflow.images import preprocessing
from vlmflow.images.decoding import decode, square
from vlmflow.inference.loading import image_processor, tokenize_captions, tokenizer


class Batches:
    """Rows of a square picture and a caption to a batch of tensors.

    A batch holds `pixel_values` (N, 3, H, W) where the model has an image processor, `input_ids` and
    `attention_mask` (N, L) where it has a tokenizer. What is hidden from a masked model is drawn in its forward.
    """

    def __init__(self, model: Any, processor: Any):
        self.config = model.config
        self.pictures, self.words = image_processor(processor), tokenizer(processor)
        self.raw = self.config.model_type == "sketch"  # takes bytes, and squeezes pictures its own way

    def rows(self, images: Sequence[bytes | Image.Image], captions: Sequence[str]) -> list[dict[str, Any]]:
        """Every picture (encoded, or as it is) is made the model's square once, before the first step."""
        parts: dict[str, Iterable[Any]] = {}
        if self.pictures is not None:
            parts["pixels"] = map(self._square, images)
        if self.words is not None:
            parts["caption"] = captions
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]

    @property
    def patch(self) -> int:
        """Side of a patch of the picture tower, in pixels."""
        config = getattr(self.config, "vision_config", self.config)
        return getattr(config, "patch_size", 8)

    def _square(self, image: bytes | Image.Image) -> np.ndarray:
        """(3, H, W) uint8."""
        side = self.config.image_size if self.raw else None
        picture = decode(image, at_least=side) if isinstance(image, bytes) else image
        return square(picture, side) if side else preprocessing.squares(self.pictures, [picture])[0].numpy()

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch: dict[str, Any] = {}
        if self.words is not None:
            batch.update(self.tokens([row["caption"] for row in rows]))
        if self.pictures is not None:
            batch["pixel_values"] = self.seen(torch.from_numpy(np.stack([row["pixels"] for row in rows])))
        return batch

    def tokens(self, captions: list[str]) -> Any:
        """`input_ids` and `attention_mask`, (N, L)."""
        return tokenize_captions(self.words, self.config, captions)

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: (N, 3, H, W) uint8; returns them as the model takes them."""
        return pixels if self.raw else preprocessing.normalised(self.pictures, pixels)
