"""The keyword arguments of a trainer, from the budget of a recipe."""

import os
from pathlib import Path
from typing import Any

import torch

from vlmflow.training.config import TrainingConfig


def trainer_arguments(training: TrainingConfig, folder: Path, **extra: Any) -> dict[str, Any]:
    """The keyword arguments of `TrainingArguments` (or of TRL's configs) for this budget on this machine.

    `extra` overrides the defaults here, and the recipe's `trainer` mapping overrides both.
    """
    cuda = torch.cuda.is_available()
    saving = {"save_strategy": "steps", "save_steps": training.save_every, "save_total_limit": 2}
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
        "report_to": [],  # the step logs the loss curve of the checkpoint's card
        "remove_unused_columns": False,
        "use_cpu": not cuda,
        "bf16": cuda,
        **({"ddp_backend": "nccl" if cuda else "gloo"} if "RANK" in os.environ else {}),
        "dataloader_pin_memory": cuda,
        **(saving if training.save_every else {}),
        **({"fsdp": True, "fsdp_config": {"version": 2}} if training.sharding == "fsdp" else {}),
        **extra,
        **training.trainer,
    }
