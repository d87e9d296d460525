"""Contrastive losses over a batch of paired embeddings, on one process or many."""

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_gather_single_autograd
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
        group = dist.group.WORLD
        assert group is not None  # it is initialised
        images, texts = (all_gather_single_autograd(x, 0, group) for x in (image, text))
        offset = dist.get_rank() * len(image)
    target = torch.arange(len(image), device=image.device) + offset
    rows = F.cross_entropy(scale * image @ texts.T, target)
    columns = F.cross_entropy(scale * text @ images.T, target)
    return (rows + columns) / 2
