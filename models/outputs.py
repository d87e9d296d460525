"""The output of every pretraining family."""

from dataclasses import dataclass

import torch
from transformers.utils.generic import ModelOutput


@dataclass
class PretrainingOutput(ModelOutput):
    """A loss and its terms.

    loss: scalar.
    parts: the terms of the loss by name, each a scalar before weighting.
    """

    loss: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] | None = None
