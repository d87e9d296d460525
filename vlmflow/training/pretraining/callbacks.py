"""What happens to the weights after every optimizer step."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Clamp(TrainerCallback):
    """Keep the parameter `logit_scale` between 0 and log `most`, so that the factor on cosines is from 1 to `most`.

    Under a clamp in the forward alone the parameter can drift beyond, where no gradient brings it back.

    Source: Radford et al. 2021, section 2.5; open_clip clamps after the step, as here.
    """

    def __init__(self, most: float):
        self.most = math.log(most)

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """The optimizer has changed the parameter."""
        model.logit_scale.clamp_(0, self.most)


class Average(TrainerCallback):
    """The weights end as their moving average, θ̄ ← decay · θ̄ + (1 − decay) · θ, begun with the first step's θ.

    Each process keeps the average of its own share of a sharded model, and its own file of it in a checkpoint.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.averaged: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Go on with the average of the training that this one goes on from."""
        if state is not None and state.global_step:
            averaged = torch.load(self._file(args, state), map_location="cpu", weights_only=True)
            self.averaged = {name: weight.to(args.device) for name, weight in averaged.items()}

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """The optimizer has changed the weights."""
        for name, weight in _own(model):
            if name in self.averaged:
                self.averaged[name].lerp_(weight, 1 - self.decay)
            else:
                self.averaged[name] = weight.clone()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint holds the average too."""
        torch.save(self.averaged, self._file(args, state))

    @torch.no_grad()
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """The average is what is kept."""
        for name, weight in _own(model):
            if name in self.averaged:
                weight.copy_(self.averaged[name])

    def _file(self, args: TrainingArguments, state: TrainerState) -> Path:
        checkpoint = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        return checkpoint / f"average_{args.process_index}.pt"


def _own(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters, or this process's share of each."""
    for name, parameter in model.named_parameters():
        yield name, parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()
