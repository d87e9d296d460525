"""Callbacks that change the weights after every optimizer step."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmflow.artifacts.checkpoint import describe_faults
from vlmflow.errors import ModelError


class ClampLogitScale(TrainerCallback):
    """Clamps `logit_scale` to [0, log `maximum`], so that the factor on cosines is between 1 and `maximum`.

    With a clamp in the forward pass only, the parameter can drift out of range, where it has no gradient.

    Source: Radford et al. 2021, section 2.5; open_clip clamps after the step, as here.
    """

    def __init__(self, maximum: float):
        self.log_maximum = math.log(maximum)

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Clamp after the optimizer's update."""
        model.logit_scale.clamp_(0, self.log_maximum)


class EMACallback(TrainerCallback):
    """Keeps an exponential moving average of the weights, θ̄ ← decay · θ̄ + (1 − decay) · θ, as the final weights.

    The average starts with the weights after the first step. In a sharded model each process averages its own shard,
    and saves it to its own file of a checkpoint.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.averaged: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Load the average of the training that this one resumes.

        Raises:
            ModelError: the average is not that of this model's weights.
        """
        if state is not None and state.global_step:
            averaged = torch.load(self._file(args, state), map_location="cpu", weights_only=True)
            own = {name for name, _ in _local_parameters(model)}
            faults = {"missing": sorted(own - averaged.keys()), "unknown": sorted(averaged.keys() - own)}
            if any(faults.values()):
                raise ModelError(f"{self._file(args, state)}: {describe_faults(faults)}; remove it to start again")
            self.averaged = {name: weight.to(args.device) for name, weight in averaged.items()}

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Update the average after the optimizer's update."""
        for name, weight in _local_parameters(model):
            if name in self.averaged:
                self.averaged[name].lerp_(weight, 1 - self.decay)
            else:
                self.averaged[name] = weight.clone()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save the average with the checkpoint."""
        torch.save(self.averaged, self._file(args, state))

    @torch.no_grad()
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Copy the average into the model."""
        for name, weight in _local_parameters(model):
            if name in self.averaged:
                weight.copy_(self.averaged[name])

    def _file(self, args: TrainingArguments, state: TrainerState) -> Path:
        checkpoint = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        return checkpoint / f"average_{args.process_index}.pt"


def _local_parameters(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The named parameters, or this process's shard of each."""
    for name, parameter in model.named_parameters():
        yield name, parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()
