"""The batches of training: pictures that change, two views of each, and captions that are nearly right."""

from typing import Any

import numpy as np
import torch

from vlmflow.training.collators import Batches
from vlmflow.training.pretraining.augment import changed
from vlmflow.training.pretraining.config import PretrainConfig, ViewConfig
from vlmflow.training.pretraining.hard_negative_captions import Negatives


class TrainingBatches(Batches):
    """`Batches` with what the recipe asks for beside the pairs.

    `views` (N, 2, 3, H, W) come for a model that compares them (SLIP). `negative_input_ids` and
    `negative_attention_mask` (N·M, L) come for M `negatives`; rows i·M to i·M + M − 1 are those of caption i.
    """

    def __init__(self, model: Any, processor: Any, section: PretrainConfig):
        super().__init__(model, processor)
        self.augment, self.count = section.augment, section.negatives
        self.views = (section.views or ViewConfig()) if getattr(model.config, "slip_weight", 0) else None
        self.negatives: Negatives | None = None

    def learn(self, rows: list[dict[str, Any]]) -> None:
        """Take in what the training captions say of words, where negatives are asked for."""
        if self.count:
            self.negatives = Negatives(row["caption"] for row in rows)

    def seen(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: (N, 3, H, W) uint8; returns them changed, and as the model takes them."""
        return super().seen(pixels if self.augment is None else changed(pixels, self.augment))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        if self.views is not None:
            pixels = torch.from_numpy(np.stack([row["pixels"] for row in rows]))
            pair = [super(TrainingBatches, self).seen(changed(pixels, self.views)) for _ in range(2)]
            batch["views"] = torch.stack(pair, dim=1)
        if self.negatives is not None:
            near = [text for row in rows for text in self.negatives.draw(row["caption"], self.count)]
            batch.update({f"negative_{name}": tensor for name, tensor in self.tokens(near).items()})
        return batch
