"""The Muon optimizer for the matrices of the blocks, with AdamW for all other parameters."""

import math
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vlmflow.training.config import TrainingConfig

ADAMW_NAMES = ("embed", "head", "positions", "tokens", "projection")  # a matrix with one of these in its name


class Muon(torch.optim.Optimizer):
    """Muon for the matrices inside the blocks and AdamW for everything else, as one optimizer.

    Embeddings, heads, norms, biases, positions and convolutions go to AdamW. The two share `param_groups`, so that a
    scheduler sees one list. Matrices of one shape are orthogonalised together, in float32 on a CPU: `torch.optim.Muon`
    takes one matrix at a time in bfloat16, which on a CPU without bfloat16 units costs several times the rest of a
    small step. Sharded matrices (FSDP2) are gathered for their update.

    Args:
        lr: learning rate of AdamW; that of Muon is `lr · scale`.

    Source: Jordan et al. 2024; update scale matched to AdamW's as in Liu et al. 2025 (0.2 · √max(rows, columns)).
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, scale: float = 1.0, momentum: float = 0.95):
        matrices, rest, scalars = [], [], []  # FSDP2 does not shard scalars: they need a group of their own
        self.parts: list[int] = []  # number of matrices that each parameter holds
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim == 2 and not any(part in name for part in ADAMW_NAMES):
                matrices.append(parameter)
                self.parts.append(3 if "qkv" in name else 1)
            else:
                (rest if parameter.ndim else scalars).append(parameter)
        groups = [{"params": group} for group in (rest, scalars) if group]
        self.adamw = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
        muon = {"params": matrices, "lr": lr * scale, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([muon], {})
        self.param_groups += self.adamw.param_groups
        self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Take one step of both optimizers."""
        group, by_shape, sharded = self.param_groups[0], defaultdict(list), []
        for parameter, parts in zip(group["params"], self.parts, strict=True):
            if parameter.grad is None:
                continue
            velocity = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            velocity.lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(velocity, group["momentum"])  # Nesterov
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            target = parameter
            if isinstance(update, DTensor):
                update = update.full_tensor()
                target = torch.zeros_like(update)
                sharded.append((parameter, target))
            # Queries, keys and values are three matrices that are stored as one.
            for view, part in zip(*(x.chunk(parts) for x in (target, update)), strict=True):
                by_shape[part.shape].append((view, part))
        stacks = [torch.stack([update for _, update in pairs]) for pairs in by_shape.values()]
        for (shape, pairs), updates in zip(by_shape.items(), orthogonalize_shared(stacks), strict=True):
            step = -group["lr"] * 0.2 * math.sqrt(max(shape))
            for (view, _), update in zip(pairs, updates, strict=True):
                view.add_(update, alpha=step)
        for parameter, change in sharded:
            layout = parameter.device_mesh, parameter.placements
            parameter.add_(distribute_tensor(change, *layout, src_data_rank=None))  # each process keeps its shard
        self.adamw.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both optimizers, so that a resumed run continues exactly."""
        super().load_state_dict(state_dict)
        self.adamw.state, self.adamw.param_groups = self.state, self.param_groups[1:]


def orthogonalize_shared(stacks: list[torch.Tensor]) -> list[torch.Tensor]:
    """`orthogonalize` each stack (B, rows, columns); processes with equal gradients (DDP) split the work."""
    if not (dist.is_available() and dist.is_initialized()):
        return [orthogonalize(stack) for stack in stacks]
    rank, world = dist.get_rank(), dist.get_world_size()
    results = [torch.zeros_like(stack) for stack in stacks]
    for out, stack in zip(results, stacks, strict=True):
        out[rank::world] = orthogonalize(stack[rank::world])
    flat = torch.cat([out.flatten() for out in results])
    dist.all_reduce(flat)
    parts = flat.split([stack.numel() for stack in stacks])
    return [part.view_as(stack) for part, stack in zip(parts, stacks, strict=True)]


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Approximate the nearest orthogonal matrices by a quintic Newton–Schulz iteration; (B, rows, columns)."""
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def build_optimizers(model: nn.Module, training: TrainingConfig) -> tuple[torch.optim.Optimizer | None, None]:
    """The `optimizers` argument of a trainer: Muon, or None for the AdamW of transformers."""
    if training.optimizer == "adamw":
        return None, None
    return Muon(model, training.learning_rate, training.weight_decay, training.muon_scale), None
