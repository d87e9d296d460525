"""FSDP2 for any family and any trainer: each process keeps a share of weights, gradients and optimizer state.

accelerate shards the model; what it needs to know of ours stands here. Source: Zhao et al. 2023; torch's `fully_shard`.
"""

from typing import Any

import torch
import torch.distributed as dist
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import nn
from transformers import Trainer, TrainerCallback

from vlmflow.training.arguments import optimizers
from vlmflow.training.config import TrainingConfig


def prepared(trainer: Trainer, training: TrainingConfig) -> Trainer:
    """`trainer` with its optimizer, and ready to shard where `training.sharding` says so.

    Blocks (what stands in a list of modules) are gathered one at a time, in forward and in backward; the rest is
    gathered for the whole step. Single numbers, such as a `logit_scale`, are not shared out: `fully_shard` refuses
    them, and their gradients are averaged here.
    """
    model: Any = trainer.model
    trainer.optimizer = optimizers(model, training)[0]
    if training.sharding == "none":
        return trainer
    if not trainer.is_fsdp_enabled:
        _on_cpu(trainer)
    numbers = [parameter for parameter in model.parameters() if not parameter.ndim]
    plugin: Any = trainer.accelerator.state.fsdp_plugin
    plugin.ignored_modules = [nn.ParameterList(numbers)]
    model.__dict__.update(UNSAID)
    trainer.add_callback(_SayAgain())
    plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in blocks(model)})
    for parameter in numbers:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average)
    _part(trainer.create_optimizer())
    return trainer


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of every list in `model`: its layers."""
    return [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]


def weights(trainer: Trainer) -> Any:
    """The whole state dict of a sharded model, in process 0; each process calls it. None where nothing is sharded."""
    if not trainer.is_fsdp_enabled:
        return None
    model: Any = trainer.model
    tied = getattr(model, "all_tied_weights_keys", {})  # saved once, under the name of what they are tied to
    return {name: one for name, one in trainer.accelerator.get_state_dict(model).items() if name not in tied}


# accelerate makes units of their own of embeddings and last norm, which it asks the model for. One with two towers has
# no answer, one with tied biases fails, and one whose towers are compared needs both in the same state.
UNSAID = {"get_input_embeddings": lambda: None, "get_output_embeddings": lambda: None, "base_model_prefix": "-"}


class _SayAgain(TrainerCallback):
    """The model is sharded, and may be asked again."""

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        """accelerate has done its part."""
        for name in UNSAID:
            model.__dict__.pop(name, None)


def _on_cpu(trainer: Trainer) -> None:
    """accelerate 1.15 sets FSDP up on accelerators alone and leaves it out on a CPU; the rest of it works there."""
    settings: Any = trainer.args.fsdp_plugin_args
    for state in (PartialState(), trainer.accelerator.state):
        state.distributed_type = DistributedType.FSDP
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)
    trainer.is_fsdp_enabled = True


def _average(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad.div_(dist.get_world_size())


def _part(optimizer: torch.optim.Optimizer) -> None:
    """Single numbers in groups of their own: a kernel over many parameters takes shared ones or plain ones."""
    for group in list(optimizer.param_groups):
        numbers = [parameter for parameter in group["params"] if not parameter.ndim]
        if numbers and len(numbers) < len(group["params"]):
            group["params"] = [parameter for parameter in group["params"] if parameter.ndim]
            optimizer.add_param_group({**group, "params": numbers})
