"""Gradient caching: batches whose activations do not fit in memory."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def grad_cache_embed(embed: Callable[..., torch.Tensor], size: int, *rows: torch.Tensor | None) -> torch.Tensor:
    """Compute `embed(*rows)` with the activations of at most `size` rows in memory; size 0 disables the splitting.

    The forward pass keeps only the embeddings. The backward pass embeds each part again, with the same random numbers,
    and applies the gradient that the loss of the whole batch has for its embeddings. The parameter gradients equal
    those of the whole batch.

    Args:
        embed: a function of (n, …) inputs that returns (n, D) embeddings and treats rows independently.
        rows: (N, …) inputs; None is passed on.

    Source: Gao et al. 2021 (gradient caching); Pham et al. 2021, section 5.
    """
    count = next(len(row) for row in rows if row is not None)
    if not 0 < size < count:
        return embed(*rows)
    parts = []
    for start in range(0, count, size):
        part = [None if row is None else row[start : start + size] for row in rows]
        parts.append(checkpoint(embed, *part, use_reentrant=False))
    return torch.cat(parts)
