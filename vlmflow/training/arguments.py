"""What every trainer shares: its arguments, its optimizer and its progress."""

import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmflow.training.config import TrainingConfig

logger = logging.getLogger(__name__)

WARMUP_STEPS, TIMED_STEPS = 2, 8  # steps of a trial
ADAMW_NAMES = ("embed", "head", "positions", "tokens", "projection")


def trainer_arguments(training: TrainingConfig, folder: Path, **extra: Any) -> dict[str, Any]:
    """The keyword arguments of `TrainingArguments` (or TRL's configs) for this budget and this machine."""
    cuda = torch.cuda.is_available()
    saved = {"save_strategy": "steps", "save_steps": training.save_every, "save_total_limit": 2}
    return {
        "output_dir": str(folder),
        "max_steps": training.max_steps,
        "per_device_train_batch_size": training.batch_size // training.world,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "lr_scheduler_type": "cosine",
        "warmup_steps": training.warmup_steps,
        "seed": training.seed,
        "data_seed": training.seed,
        "save_strategy": "no",
        "logging_steps": max(1, training.max_steps // 20),
        "disable_tqdm": True,
        "report_to": ["mlflow"] if os.environ.get("MLFLOW_RUN_ID") else [],
        "remove_unused_columns": False,
        "use_cpu": not cuda,
        "bf16": cuda,
        **({"ddp_backend": "nccl" if cuda else "gloo"} if "RANK" in os.environ else {}),
        "dataloader_pin_memory": cuda,
        **(saved if training.save_every else {}),
        **({"fsdp": True, "fsdp_config": {"version": 2}} if training.sharding == "fsdp" else {}),
        **extra,
        **training.trainer,
    }


class Muon(torch.optim.Optimizer):
    """Muon for the matrices inside the blocks, AdamW for everything else, as one optimizer.

    Embeddings, heads, norms, biases, positions and convolutions go to AdamW. The two share `param_groups`, so
    that schedulers see one list. `torch.optim.Muon` orthogonalises one matrix at a time in bfloat16, which a
    CPU without bfloat16 units does several times slower than the whole rest of a small step; here matrices of
    one shape go together, in float32 on a CPU. What FSDP2 shares out is put together for its update.

    Args:
        lr: AdamW's rate; Muon's is `lr · scale`.

    Source: Jordan et al. 2024; update scale matched to AdamW's as in Liu et al. 2025 (0.2 · √max(rows, columns)).
    """

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, scale: float = 1.0, momentum: float = 0.95):
        matrices, rest, numbers = [], [], []  # FSDP2 shares no single number out: they are a group of their own
        self.parts: list[int] = []  # of each matrix
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim == 2 and not any(part in name for part in ADAMW_NAMES):
                matrices.append(parameter)
                self.parts.append(3 if "qkv" in name else 1)
            else:
                (rest if parameter.ndim else numbers).append(parameter)
        groups = [{"params": group} for group in (rest, numbers) if group]
        self.adamw = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
        muon = {"params": matrices, "lr": lr * scale, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([muon], {})
        self.param_groups += self.adamw.param_groups
        self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step of both."""
        group, by_shape, shared = self.param_groups[0], defaultdict(list), []
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
                shared.append((parameter, target))
            # Queries, keys and values are three matrices that happen to be stored as one.
            for place, part in zip(*(x.chunk(parts) for x in (target, update)), strict=True):
                by_shape[part.shape].append((place, part))
        stacks = [torch.stack([update for _, update in pairs]) for pairs in by_shape.values()]
        for (shape, pairs), updates in zip(by_shape.items(), orthogonalize_shared(stacks), strict=True):
            step = -group["lr"] * 0.2 * math.sqrt(max(shape))
            for (place, _), update in zip(pairs, updates, strict=True):
                place.add_(update, alpha=step)
        for parameter, change in shared:
            where = parameter.device_mesh, parameter.placements
            parameter.add_(distribute_tensor(change, *where, src_data_rank=None))  # each takes its own share of it
        self.adamw.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both; a resumed run goes on as if it had not stopped."""
        super().load_state_dict(state_dict)
        self.adamw.state, self.adamw.param_groups = self.state, self.param_groups[1:]


def orthogonalize_shared(stacks: list[torch.Tensor]) -> list[torch.Tensor]:
    """`orthogonal` of each stack (B, rows, columns); processes whose gradients agree (DDP) share the work."""
    if not (dist.is_available() and dist.is_initialized()):
        return [orthogonalize(stack) for stack in stacks]
    rank, world = dist.get_rank(), dist.get_world_size()
    found = [torch.zeros_like(stack) for stack in stacks]
    for out, stack in zip(found, stacks, strict=True):
        out[rank::world] = orthogonalize(stack[rank::world])
    flat = torch.cat([out.flatten() for out in found])
    dist.all_reduce(flat)
    parts = flat.split([stack.numel() for stack in stacks])
    return [part.view_as(stack) for part, stack in zip(parts, stacks, strict=True)]


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearest orthogonal matrices, roughly, by a quintic Newton–Schulz iteration; (B, rows, columns)."""
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def build_optimizers(model: nn.Module, training: TrainingConfig) -> tuple[torch.optim.Optimizer | None, None]:
    """The `optimizers` argument of a trainer: Muon, or None for the library's AdamW."""
    if training.optimizer == "adamw":
        return None, None
    return Muon(model, training.learning_rate, training.weight_decay, training.muon_scale), None


class Progress(TrainerCallback):
    """A line on the log for a person who waits, and the curve for the report."""

    def __init__(self) -> None:
        self.curve: list[dict[str, float]] = []
        self.started, self.begun = time.monotonic(), 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take over the curve of the training that this one goes on from."""
        logged = (logs for logs in state.log_history if "loss" in logs)
        self.curve = [{"step": logs["step"]} | {k: float(v) for k, v in logs.items() if k != "step"} for logs in logged]
        self.begun = state.global_step

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Keep the step's numbers; raise on a loss that is no number, which no further step would mend."""
        if not logs or "loss" not in logs:
            return
        numbers = {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}
        if not math.isfinite(numbers["loss"]):
            raise FloatingPointError(f"the loss is {numbers['loss']} at step {state.global_step}")
        self.curve.append({"step": state.global_step, **numbers})
        if state.is_world_process_zero:
            elapsed = time.monotonic() - self.started
            left = elapsed / (state.global_step - self.begun) * (state.max_steps - state.global_step)
            logger.info(
                "step %d of %d  loss %.3f  %.0f s left", state.global_step, state.max_steps, numbers["loss"], left
            )


class StepClock(TrainerCallback):
    """The times at which the steps of a trial ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note the time."""
        self.ends.append(process_seconds())


def process_seconds() -> float:
    """This process's own time, so that a busy machine learns no less; with a GPU, which works beside it, the wall's."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def steps_for_seconds(training: TrainingConfig, trial: Callable[[TrainingConfig, StepClock], Any]) -> TrainingConfig:
    """The budget `training.seconds` in steps, the same in every process; what a trial takes counts as spent.

    Args:
        trial: trains a copy of the model by the budget and with the clock that it is given.
    """
    assert training.seconds is not None
    start, clock = process_seconds(), StepClock()
    quiet = {**training.trainer, "logging_strategy": "no", "report_to": "none"}
    trial(
        training.model_copy(update={"seconds": None, "max_steps": WARMUP_STEPS + TIMED_STEPS, "trainer": quiet}), clock
    )
    each = (clock.ends[-1] - clock.ends[WARMUP_STEPS - 1]) / TIMED_STEPS
    steps = torch.tensor((training.seconds - (process_seconds() - start)) / each)
    if dist.is_available() and dist.is_initialized():
        steps = steps.cuda() if torch.cuda.is_available() else steps
        dist.all_reduce(steps, dist.ReduceOp.MIN)
    chosen = max(1, int(steps))
    logger.info("%d steps of %.3f s in a budget of %g s", chosen, each, training.seconds)
    return training.model_copy(update={"seconds": None, "max_steps": chosen})
