"""What the towers of the sketch family share: a transformer block, and places as waves."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache


class ResidualOutput(nn.Linear):
    """A linear map that starts at zero: what it adds to a residual stream is learned from nothing."""


class Block(nn.Module):
    """Pre-norm attention and MLP whose outputs start at zero, so that a new block is the identity.

    Args:
        width: D, the size of a token.
        heads: attention heads; D must divide by it.
        mlp_ratio: hidden size of the MLP over D.
        layer: the block's index in the cache of keys and values.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, layer: int = 0):
        super().__init__()
        self.heads, self.layer = heads, layer
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_output = ResidualOutput(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_input = nn.Linear(width, mlp_ratio * width)
        self.mlp_output = ResidualOutput(mlp_ratio * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, cache: Cache | None = None) -> torch.Tensor:
        """x: (N, L, D); mask: (N, 1, L, K) bool, True where a query may look at a key; returns (N, L, D)."""
        n, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, L, D/heads)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attention_output(y.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp_output(F.gelu(self.mlp_input(self.mlp_norm(x))))


def waves(values: torch.Tensor, width: int) -> torch.Tensor:
    """Places in 0..1 as sines and cosines, half a turn to 12 turns over the range: near places, near vectors.

    values: (N,); returns (N, width), each entry in −1..1.
    """
    turns = torch.logspace(math.log10(0.5), math.log10(12.0), width // 2)
    angles = 2 * math.pi * values[:, None] * turns
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def waves_2d(side: int, width: int) -> torch.Tensor:
    """A side × side grid, row by row: (side², width), half of it for the row and half for the column."""
    one = waves((torch.arange(side) + 0.5) / side, width // 2)
    return torch.cat([one.repeat_interleave(side, 0), one.repeat(side, 1)], dim=1)
