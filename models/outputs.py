"""What every pretraining family returns."""

from dataclasses import dataclass

import torch
from transformers.utils.generic import ModelOutput


@dataclass
class PretrainingOutput(ModelOutput):
    """A loss and what it is the sum of.

    loss: scalar, or None where none was asked for.
    parts: the loss's terms by name, each a scalar, before their weights.
    """

    loss: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] | None = None
