"""A batch larger than the memory for its activations."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def in_parts(embed: Callable[..., torch.Tensor], size: int, *rows: torch.Tensor | None) -> torch.Tensor:
    """`embed(*rows)` with the activations of `size` rows at a time; 0 is all at once.

    Only the vectors are kept. The backward pass embeds each part again, with the random numbers it had, once the
    loss of the whole batch has told the gradient of its vectors: the gradients are those of the whole batch.

    Args:
        embed: (n, …) inputs to (n, D) vectors, row by row.
        rows: (N, …) inputs; None is handed on.

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
