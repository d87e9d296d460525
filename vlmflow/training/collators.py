"""Batches of image-caption pairs, for every pretraining family."""

import hashlib
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmflow.images import preprocessing
from vlmflow.images.decoding import decode, resize_square
from vlmflow.inference.inputs import image_processor, tokenize_captions, tokenizer


class PairCollator:
    """Collate rows of a square image and a caption to a batch of tensors.

    A batch has `pixel_values` (N, 3, H, W) if the model has an image processor, `input_ids` and `attention_mask` (N, L)
    if it has a tokenizer, and `caption_ids` (N,) if it compares the captions of a batch. Masked models draw their masks
    in the forward pass.
    """

    def __init__(self, model: Any, processor: Any):
        self.config = model.config
        self.image_processor, self.tokenizer = image_processor(processor), tokenizer(processor)
        self.takes_caption_ids = "caption_ids" in inspect.signature(model.forward).parameters
        self.raw_pixels = getattr(self.config, "takes_raw_pixels", False)

    def make_rows(self, images: Sequence[bytes | Image.Image], captions: Sequence[str]) -> list[dict[str, Any]]:
        """Make a row of every pair; images are decoded and resized here, once, before the first step."""
        columns: dict[str, Iterable[Any]] = {}
        if self.image_processor is not None:
            columns["pixels"] = map(self._resize, images)
        if self.tokenizer is not None:
            columns["caption"] = captions
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @property
    def patch_size(self) -> int:
        """Side of a patch of the image tower, in pixels."""
        config = getattr(self.config, "vision_config", self.config)
        return getattr(config, "patch_size", 8)

    def _resize(self, image: bytes | Image.Image) -> np.ndarray:
        """(3, H, W) uint8, in the size that the model takes."""
        if self.raw_pixels:
            side = self.config.image_size
            return resize_square(decode(image, at_least=side) if isinstance(image, bytes) else image, side)
        decoded = decode(image) if isinstance(image, bytes) else image
        return preprocessing.resize_and_crop(self.image_processor, [decoded])[0].numpy()

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch: dict[str, Any] = {}
        if self.tokenizer is not None:
            captions = [row["caption"] for row in rows]
            batch.update(self.tokenize(captions))
            if self.takes_caption_ids:
                batch["caption_ids"] = caption_ids(captions)
        if self.image_processor is not None:
            batch["pixel_values"] = self.prepare_pixels(torch.from_numpy(np.stack([row["pixels"] for row in rows])))
        return batch

    def tokenize(self, captions: list[str]) -> Any:
        """`input_ids` and `attention_mask`, (N, L)."""
        return tokenize_captions(self.tokenizer, self.config, captions)

    def prepare_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise `pixels` (N, 3, H, W) uint8, unless the model does it itself."""
        return pixels if self.raw_pixels else preprocessing.normalize(self.image_processor, pixels)


def caption_ids(captions: Iterable[str]) -> torch.Tensor:
    """A 64-bit hash of each caption, (N,), the same on all processes; case and runs of spaces do not count."""
    plain = (" ".join(caption.lower().split()).encode() for caption in captions)
    hashes = (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True) for text in plain)
    return torch.tensor(list(hashes), dtype=torch.int64)
