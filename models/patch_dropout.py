"""FLIP's patch dropout: a vision tower that processes a random part of each image in training, and so trains faster.

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
    """A forward hook that keeps a random subset of the patches of each image, in training only.

    Args:
        rate: share of the patches that is dropped, at least 0 and below 1; at least one patch is kept.
        prefix: tokens in front of the patches, such as CLS; they are kept.

    Raises:
        ValueError: the rate is out of range.
    """

    def __init__(self, rate: float, prefix: int):
        if not 0 <= rate < 1:
            raise ValueError(f"patch dropout must be at least 0 and below 1, got {rate}")
        self.rate, self.prefix = rate, prefix

    def __call__(self, module: nn.Module, _: Any, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: (N, prefix + P, D) with positions added; returns (N, prefix + kept, D)."""
        if not module.training or not self.rate:
            return tokens
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        images, count, width = patches.shape
        kept = max(1, round(count * (1 - self.rate)))
        indices = torch.rand(images, count, device=tokens.device).argsort(1)[:, :kept]  # (N, kept)
        return torch.cat([prefix, patches.gather(1, indices[..., None].expand(-1, -1, width))], dim=1)


def find_patch_embeddings(model: nn.Module) -> tuple[nn.Module, int] | None:
    """Find the module that embeds the patches in `model`'s vision tower, and the number of tokens in front of them.

    None for a model without a vision tower of CLIP, SigLIP or the tiny family.
    """
    for module in model.modules():
        if isinstance(module, CLIPVisionEmbeddings):
            return module, 1
        if isinstance(module, SiglipVisionEmbeddings):
            return module, 0
        if isinstance(module, VisionTower):
            return module.patch_embeddings, 0
    return None


def attach(model: nn.Module, rate: float) -> RemovableHandle:
    """Drop the share `rate` of patches in `model`'s vision tower in training, until the handle is removed.

    Raises:
        ValueError: `model` has no suitable vision tower, or the rate is out of range.
    """
    embeddings = find_patch_embeddings(model)
    if embeddings is None:
        raise ValueError(f"{type(model).__name__} has no vision tower that supports patch dropout")
    module, prefix = embeddings
    return module.register_forward_hook(PatchDropout(rate, prefix))
