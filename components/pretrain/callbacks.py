"""What happens to the weights after every optimizer step."""

import math
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
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
    """The weights end as their moving average, θ̄ ← decay · θ̄ + (1 − decay) · θ, begun with the first step's θ."""

    def __init__(self, decay: float):
        self.decay = decay

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """The model is on its device."""
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.decay))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """The optimizer has changed the weights."""
        self.averaged.update_parameters(model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """The average is what is kept."""
        model.load_state_dict(self.averaged.module.state_dict())
