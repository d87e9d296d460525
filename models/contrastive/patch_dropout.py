"""FLIP: a picture tower that sees a part of each picture while it learns, and so learns from more pictures an hour.

Source: Li et al. 2023, section 3.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from models.tiny.dual_encoder import VisionTower


class PatchDropout:
    """A forward hook that keeps a random subset of tokens, another for each picture, in training only.

    Args:
        share: of the patches that is dropped, at least 0 and below 1; one patch is always kept.
        first: tokens at the start that are no patches, such as CLS; they are kept.

    Raises:
        ValueError: no such share.
    """

    def __init__(self, share: float, first: int):
        if not 0 <= share < 1:
            raise ValueError(f"the share of patches to drop must be at least 0 and below 1, got {share}")
        self.share, self.first = share, first

    def __call__(self, module: nn.Module, _: Any, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: (N, first + P, D) with their positions added; returns (N, first + kept, D)."""
        if not module.training or not self.share:
            return tokens
        start, patches = tokens[:, : self.first], tokens[:, self.first :]
        count, places, width = patches.shape
        kept = max(1, round(places * (1 - self.share)))
        chosen = torch.rand(count, places, device=tokens.device).argsort(1)[:, :kept]  # (N, kept)
        return torch.cat([start, patches.gather(1, chosen[..., None].expand(-1, -1, width))], dim=1)


def tower(model: nn.Module) -> tuple[nn.Module, int] | None:
    """What embeds the patches of `model`'s picture tower, and how many tokens stand before them.

    None where there is no tower of CLIP's, SigLIP's or sketch's kind.
    """
    for module in model.modules():
        if isinstance(module, CLIPVisionEmbeddings):
            return module, 1
        if isinstance(module, SiglipVisionEmbeddings):
            return module, 0
        if isinstance(module, VisionTower):
            return module.placed, 0
    return None


def attach(model: nn.Module, share: float) -> RemovableHandle:
    """Drop `share` of the patches that `model`'s picture tower sees in training, until the handle is removed.

    Raises:
        ValueError: `model` has no such tower, or there is no such share.
    """
    found = tower(model)
    if found is None:
        raise ValueError(f"{type(model).__name__} has no picture tower whose patches can be dropped")
    module, first = found
    return module.register_forward_hook(PatchDropout(share, first))
