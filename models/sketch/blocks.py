"""The transformer block that all three towers of the sketch family share."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache


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
        self.attention_output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_input = nn.Linear(width, mlp_ratio * width)
        self.mlp_output = nn.Linear(mlp_ratio * width, width)

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
