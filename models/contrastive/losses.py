"""Contrastive losses over a batch of paired embeddings, on one process or many.

N is the number of rows of one process, equal on all processes, and W the number of processes. Each process computes the
loss of its own rows; the mean over processes, which DDP takes of the gradients, is the loss of all W·N pairs. With
`chunk`, at most `chunk` rows of logits are in memory: the backward pass computes them again.

Several images of a batch may have the same caption. With `captions`, an image and an equal caption of another image are
neither a positive nor a negative pair. Without repeated captions the losses are those of the papers.
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
    *,
    captions: torch.Tensor | None = None,
    negative_captions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of row and column cross-entropy of the similarity matrix over the pairs of all processes.

    Args:
        image: (N, D), L2-normalised.
        text: (N, D), L2-normalised; row i is the caption of image i.
        scale: the factor on cosines, exp(logit_scale).
        negatives: (N·M, D), L2-normalised; hard negative captions, which are further columns for every image of every
            process and never targets.
        captions, negative_captions: (N,) and (N·M,), ids of the texts and of the negatives, equal for equal captions.

    Source: Radford et al. 2021, figure 3; negatives: Yuksekgonul et al. 2023, section 4 (NegCLIP).
    """
    first = _rank() * len(image)
    texts = all_gather_with_grad(text)  # (W·N, D)
    ids = everyone = None if captions is None else all_gather_ids(captions)  # (W·N,)
    if negatives is not None:
        texts = torch.cat([texts, all_gather_with_grad(negatives)])  # (W·N + W·N·M, D)
        if everyone is not None:
            assert negative_captions is not None, "negatives need the ids of their captions too"
            ids = torch.cat([everyone, all_gather_ids(negative_captions)])
    rows = _cross_entropy(image, texts, scale, first, chunk, ids=ids)
    columns = _cross_entropy(text, all_gather_with_grad(image), scale, first, chunk, ids=everyone)
    return (rows + columns) / 2


def siglip_loss(
    image: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    chunk: int | None = None,
    *,
    captions: torch.Tensor | None = None,
) -> torch.Tensor:
    """(1/N) Σ_ij softplus(−z_ij (t x_i·y_j + b)) with z = 1 for pairs and −1 elsewhere.

    The texts travel around a ring: a process scores its images with the texts that it holds, sends these to the next
    process and receives those of the previous one, W − 1 times. The gradients travel back in the other direction.

    Args:
        image: (N, D), L2-normalised x.
        text: (N, D), L2-normalised y; row i is the caption of image i.
        scale: t.
        bias: b.
        captions: (N,), ids of the texts, equal for equal captions.

    Source: Zhai et al. 2023, equation of section 3.2, algorithm 1 and figure 1.
    """

    def block(rows: torch.Tensor, first: int, texts: torch.Tensor, ids: torch.Tensor | None, own: bool) -> torch.Tensor:
        logits = scale * rows @ texts.T + bias  # (rows, N)
        if own:
            logits.diagonal(first).neg_()  # −z·logit: row r is the pair of text first + r
        if captions is not None:
            same = captions[first : first + len(rows), None] == ids
            if own:
                same.diagonal(first).fill_(False)
            logits = logits.masked_fill(same, float("-inf"))  # softplus of it is 0
        return F.softplus(logits).sum()

    ids = captions
    total = _chunked_sum(block, image, chunk, text, ids, True)
    for _ in range(_world() - 1):
        text = _RingShift.apply(text)
        ids = None if ids is None else _ring_exchange(ids, 1)
        total = total + _chunked_sum(block, image, chunk, text, ids, False)
    return total / len(image)


def nt_xent(one: torch.Tensor, other: torch.Tensor, temperature: float, chunk: int | None = None) -> torch.Tensor:
    """Cross-entropy of each view's partner among all other views of the batch.

    Args:
        one, other: (N, D), L2-normalised; rows i are two views of one image.

    Source: Chen et al. 2020, equation 1 (SimCLR).
    """
    first = _rank() * len(one)
    ones, others = all_gather_with_grad(one), all_gather_with_grad(other)  # (W·N, D)
    scale = torch.tensor(1 / temperature, device=one.device)
    forth = _cross_entropy(one, torch.cat([others, ones]), scale, first, chunk, skip=len(ones))
    back = _cross_entropy(other, torch.cat([ones, others]), scale, first, chunk, skip=len(ones))
    return (forth + back) / 2


def _cross_entropy(
    rows: torch.Tensor,
    columns: torch.Tensor,
    scale: torch.Tensor,
    first: int,
    chunk: int | None,
    skip: int = 0,
    ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of rows (N, D) over columns (M, D); the target of row i is column `first + i`.

    With `skip`, column `skip + first + i` is row i itself and is excluded. With `ids` (M,), so are the columns with the
    id of the target.
    """

    def block(rows: torch.Tensor, start: int) -> torch.Tensor:
        logits = scale * rows @ columns.T
        if skip:
            logits.diagonal(skip + first + start).fill_(float("-inf"))
        target = torch.arange(len(rows), device=rows.device) + first + start
        if ids is not None:
            same = ids[target, None] == ids
            same.diagonal(first + start).fill_(False)
            logits = logits.masked_fill(same, float("-inf"))
        return F.cross_entropy(logits, target, reduction="sum")

    return _chunked_sum(block, rows, chunk) / len(rows)


def _chunked_sum(block: Callable[..., torch.Tensor], rows: torch.Tensor, chunk: int | None, *more: Any) -> torch.Tensor:
    """Sum of `block(part, first row, *more)` over parts of `chunk` rows."""
    if not chunk or chunk >= len(rows):
        return block(rows, 0, *more)
    total = rows.new_zeros(())
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        total = total + checkpoint(block, part, start, *more, use_reentrant=False, preserve_rng_state=False)
    return total


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world() > 1 else 0


def all_gather_ids(ids: torch.Tensor) -> torch.Tensor:
    """Gather ids (N,) of all processes in rank order, (W·N,)."""
    if _world() == 1:
        return ids
    gathered = ids.new_empty(_world() * len(ids))
    dist.all_gather_into_tensor(gathered, ids.contiguous())
    return gathered


def all_gather_with_grad(x: torch.Tensor) -> torch.Tensor:
    """Gather x (N, D) of all processes in rank order, (W·N, D); gradients flow back to each process."""
    return _Gather.apply(x) if _world() > 1 else x  # type: ignore[return-value]


class _Gather(torch.autograd.Function):
    """All-gather; the gradient of a row is the sum of its gradients on all processes."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        rows = x.new_empty(dist.get_world_size() * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(rows, x.contiguous())
        return rows

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


class _RingShift(torch.autograd.Function):
    """The tensor of the previous process in the ring; the gradient is sent back to that process."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return _ring_exchange(x, 1)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):  # type: ignore[override]
        return _ring_exchange(gradient, -1)


def _ring_exchange(x: torch.Tensor, step: int) -> torch.Tensor:
    """Send x to the process `rank + step` and return the tensor received from the process `rank − step`."""
    rank, world = dist.get_rank(), dist.get_world_size()
    x = x.contiguous()
    received = torch.empty_like(x)
    send = dist.P2POp(dist.isend, x, (rank + step) % world)
    receive = dist.P2POp(dist.irecv, received, (rank - step) % world)
    for request in dist.batch_isend_irecv([send, receive]):
        request.wait()
    return received
