"""Training batches: augmented images, two views of each, and hard negative captions."""

from typing import Any

import numpy as np
import torch

from vlmflow.training.augment import augment
from vlmflow.training.augment_config import ViewConfig
from vlmflow.training.collators import PairCollator, caption_ids
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.hard_negative_captions import HardNegativeCaptions


class PretrainCollator(PairCollator):
    """`PairCollator` with the options of a pretraining section.

    Adds `views` (N, 2, 3, H, W) for a model that compares them (SLIP). With M `negatives` a caption, adds
    `negative_input_ids` and `negative_attention_mask` (N·M, L); rows i·M to i·M + M − 1 belong to caption i.
    """

    def __init__(self, model: Any, processor: Any, section: PretrainConfig):
        super().__init__(model, processor)
        self.augment, self.num_negatives = section.augment, section.negatives
        self.views = (section.views or ViewConfig()) if getattr(model.config, "slip_weight", 0) else None
        self.negatives: HardNegativeCaptions | None = None

    def fit_negatives(self, rows: list[dict[str, Any]]) -> None:
        """Collect the vocabulary of the training captions, if the section has negatives."""
        if self.num_negatives:
            self.negatives = HardNegativeCaptions(row["caption"] for row in rows)

    def prepare_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Augment `pixels` (N, 3, H, W) uint8, if the section has augmentation, and normalise them."""
        return super().prepare_pixels(pixels if self.augment is None else augment(pixels, self.augment))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        if self.views is not None:
            pixels = torch.from_numpy(np.stack([row["pixels"] for row in rows]))
            views = [super(PretrainCollator, self).prepare_pixels(augment(pixels, self.views)) for _ in range(2)]
            batch["views"] = torch.stack(views, dim=1)
        if self.negatives is not None:
            captions = [text for row in rows for text in self.negatives.sample(row["caption"], self.num_negatives)]
            negatives = {**self.tokenize(captions), "caption_ids": caption_ids(captions)}
            batch.update({f"negative_{name}": tensor for name, tensor in negatives.items()})
        return batch
