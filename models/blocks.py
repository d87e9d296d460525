"""Parts that several models share: the transformer block and sinusoidal positions."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache


class ZeroInitLinear(nn.Linear):
    """A linear layer whose weights start at zero, so that a residual branch that ends in it starts as the identity.

    The model that holds it zeroes the weights in its `_init_weights`.
    """


class Block(nn.Module):
    """Pre-norm transformer block; both branches end in a `ZeroInitLinear`, so a new block is the identity.

    Args:
        width: D, the size of a token; a multiple of `heads`.
        heads: attention heads.
        mlp_ratio: hidden size of the MLP divided by D.
        layer: the block's index in the key-value cache.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, layer: int = 0):
        super().__init__()
        self.heads, self.layer = heads, layer
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_output = ZeroInitLinear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_input = nn.Linear(width, mlp_ratio * width)
        self.mlp_output = ZeroInitLinear(mlp_ratio * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, cache: Cache | None = None) -> torch.Tensor:
        """Apply attention and MLP.

        Args:
            x: (N, L, D).
            mask: (N, 1, L, K) bool, True where a query may attend to a key.
            cache: keys and values of earlier calls; extended in place.

        Returns:
            (N, L, D).
        """
        n, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, L, D/heads)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attention_output(y.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp_output(F.gelu(self.mlp_input(self.mlp_norm(x))))


def sinusoidal_positions(values: torch.Tensor, width: int) -> torch.Tensor:
    """Encode positions in 0..1 as sines and cosines of half a period to 12 periods over the range.

    values: (N,); returns (N, width), entries in −1..1. Near positions get near vectors.
    """
    periods = torch.logspace(math.log10(0.5), math.log10(12.0), width // 2)
    angles = 2 * math.pi * values[:, None] * periods
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sinusoidal_positions_2d(side: int, width: int) -> torch.Tensor:
    """Encode a side × side grid row by row: (side², width), one half for the row and one for the column."""
    axis = sinusoidal_positions((torch.arange(side) + 0.5) / side, width // 2)
    return torch.cat([axis.repeat_interleave(side, 0), axis.repeat(side, 1)], dim=1)
