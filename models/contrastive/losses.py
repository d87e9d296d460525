"""Contrastive losses over a batch of paired embeddings, on one process or many."""

import torch
import torch.distributed as dist
from torch.nn import functional as F


def clip_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Mean of row and column cross-entropy of the similarity matrix, with negatives from every process.

    With several processes each one scores its own rows against all columns; the mean over processes is
    the loss of the whole batch, and gradients flow back through the gather.

    Args:
        image: (N, D), L2-normalised; the same N on every process.
        text: (N, D), L2-normalised; row i is the pair of image i.
        scale: the factor on cosines, exp(logit_scale).

    Source: Radford et al. 2021, figure 3.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1:
        images, texts, offset = image, text, 0
    else:
        images, texts = _Gather.apply(image), _Gather.apply(text)
        offset = dist.get_rank() * len(image)
    target = torch.arange(len(image), device=image.device) + offset
    rows = F.cross_entropy(scale * image @ texts.T, target)
    columns = F.cross_entropy(scale * text @ images.T, target)
    return (rows + columns) / 2


class _Gather(torch.autograd.Function):
    """The rows of every process; the gradient of a row is the sum of what every process has for it."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        found = x.new_empty(dist.get_world_size() * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(found, x.contiguous())
        return found

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):  # type: ignore[override]
        whole = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]
