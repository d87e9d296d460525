"""Contrastive losses over a batch of paired embeddings, on one process or many.

N is a process's own rows, the same on every process, and W the number of processes. Each process scores its own rows;
the mean over processes, which DDP takes of the gradients, is the loss of the whole batch of W·N pairs. With `chunk`
no more than `chunk` rows of logits exist at a time: they are made anew in the backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def clip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor,
    negatives: torch.Tensor | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Mean of row and column cross-entropy of the similarity matrix, with negatives from every process.

    Args:
        image: (N, D), L2-normalised.
        text: (N, D), L2-normalised; row i is the pair of image i.
        scale: the factor on cosines, exp(logit_scale).
        negatives: (N·M, D), L2-normalised; texts that fit no image. Every image of every process is held against
            all of them.

    Source: Radford et al. 2021, figure 3; negatives: Yuksekgonul et al. 2023, section 4 (NegCLIP).
    """
    first = _rank() * len(image)
    texts = gathered(text) if negatives is None else torch.cat([gathered(text), gathered(negatives)])
    rows = _cross_entropy(image, texts, scale, first, chunk)  # over W·N (+ W·N·M) texts
    columns = _cross_entropy(text, gathered(image), scale, first, chunk)  # over W·N images
    return (rows + columns) / 2


def siglip_loss(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """(1/N) Σ_ij softplus(−z_ij (t x_i·y_j + b)) with z = 1 for pairs and −1 elsewhere.

    The texts go round a ring: a process scores its images with the texts it holds, passes these on and takes its
    neighbour's, W − 1 times. Their gradients come back the other way round.

    Args:
        image: (N, D), L2-normalised x.
        text: (N, D), L2-normalised y; row i is the pair of image i.
        scale: t.
        bias: b.

    Source: Zhai et al. 2023, equation of section 3.2, algorithm 1 and figure 1.
    """

    def block(rows: torch.Tensor, first: int, texts: torch.Tensor, own: bool) -> torch.Tensor:
        logits = scale * rows @ texts.T + bias
        if own:
            logits.diagonal(first).neg_()  # −z·logit: row r is the pair of text first + r
        return F.softplus(logits).sum()

    total = _over_rows(block, image, chunk, text, True)
    for _ in range(_world() - 1):
        text = _PassOn.apply(text)
        total = total + _over_rows(block, image, chunk, text, False)
    return total / len(image)


def nt_xent(one: torch.Tensor, other: torch.Tensor, temperature: float, chunk: int | None = None) -> torch.Tensor:
    """Each view has to find the other view of its picture among all other views of the batch.

    Args:
        one, other: (N, D), L2-normalised; rows i are two views of one picture.

    Source: Chen et al. 2020, equation 1 (SimCLR).
    """
    first = _rank() * len(one)
    ones, others = gathered(one), gathered(other)
    scale = torch.tensor(1 / temperature, device=one.device)
    there = _cross_entropy(one, torch.cat([others, ones]), scale, first, chunk, skip=len(ones))
    back = _cross_entropy(other, torch.cat([ones, others]), scale, first, chunk, skip=len(ones))
    return (there + back) / 2


def _cross_entropy(
    rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor, first: int, chunk: int | None, skip: int = 0
) -> torch.Tensor:
    """Mean cross-entropy of rows (N, D) over columns (M, D); that of row i is `first + i`.

    With `skip`, column `skip + first + i` is the row itself, and no choice.
    """

    def block(rows: torch.Tensor, start: int) -> torch.Tensor:
        logits = scale * rows @ columns.T
        if skip:
            logits.diagonal(skip + first + start).fill_(float("-inf"))
        target = torch.arange(len(rows), device=rows.device) + first + start
        return F.cross_entropy(logits, target, reduction="sum")

    return _over_rows(block, rows, chunk) / len(rows)


def _over_rows(block: Callable[..., torch.Tensor], rows: torch.Tensor, chunk: int | None, *given: Any) -> torch.Tensor:
    """Sum of `block(part, first row, *given)` over parts of `chunk` rows."""
    if not chunk or chunk >= len(rows):
        return block(rows, 0, *given)
    total = rows.new_zeros(())
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        total = total + checkpoint(block, part, start, *given, use_reentrant=False, preserve_rng_state=False)
    return total


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world() > 1 else 0


def gathered(x: torch.Tensor) -> torch.Tensor:
    """(W·N, D), the rows of every process in order; gradients flow back to each."""
    return _Gather.apply(x) if _world() > 1 else x  # type: ignore[return-value]


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


class _PassOn(torch.autograd.Function):
    """What the neighbour before holds; the gradient goes back to that neighbour."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _exchange(x, 1)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):  # type: ignore[override]
        return _exchange(gradient, -1)


def _exchange(x: torch.Tensor, step: int) -> torch.Tensor:
    """Send x to the process `step` places on and take what comes from the one `step` places before."""
    rank, world = dist.get_rank(), dist.get_world_size()
    x = x.contiguous()
    found = torch.empty_like(x)
    send = dist.P2POp(dist.isend, x, (rank + step) % world)
    receive = dist.P2POp(dist.irecv, found, (rank - step) % world)
    for request in dist.batch_isend_irecv([send, receive]):
        request.wait()
    return found
