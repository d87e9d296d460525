"""FSDP2 for any family and any trainer: each process keeps a shard of weights, gradients and optimizer state.

accelerate shards the model; this module adapts it to our models. Source: Zhao et al. 2023; torch's `fully_shard`.
"""

from typing import Any

import torch
import torch.distributed as dist
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import nn
from transformers import Trainer, TrainerCallback

from vlmflow.training.config import TrainingConfig
from vlmflow.training.muon import build_optimizers


def prepare_trainer(trainer: Trainer, training: TrainingConfig) -> Trainer:
    """Give `trainer` its optimizer, and set up sharding if `training.sharding` is fsdp; returns `trainer`.

    Transformer blocks are gathered one at a time, in forward and in backward; all other parameters for the whole step.
    Scalars, such as `logit_scale`, are not sharded, because `fully_shard` rejects them; their gradients are averaged
    here.
    """
    model: Any = trainer.model
    trainer.optimizer = build_optimizers(model, training)[0]
    if training.sharding == "none":
        return trainer
    if not trainer.is_fsdp_enabled:
        _enable_fsdp_on_cpu(trainer)
    scalars = [parameter for parameter in model.parameters() if not parameter.ndim]
    plugin: Any = trainer.accelerator.state.fsdp_plugin
    plugin.ignored_modules = [nn.ParameterList(scalars)]
    model.__dict__.update(HIDDEN_ATTRIBUTES)
    trainer.add_callback(_RestoreHiddenAttributes())
    plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in transformer_blocks(model)})
    for parameter in scalars:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average_gradient)
    _split_scalar_groups(trainer.create_optimizer())
    return trainer


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of every ModuleList in `model`: its layers."""
    return [block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module]


def gather_state_dict(trainer: Trainer) -> Any:
    """The full state dict of a sharded model, in process 0; None without sharding. Every process must call it."""
    if not trainer.is_fsdp_enabled:
        return None
    model: Any = trainer.model
    tied = getattr(model, "all_tied_weights_keys", {})  # saved once, under the name of the parameter they are tied to
    return {name: value for name, value in trainer.accelerator.get_state_dict(model).items() if name not in tied}


# accelerate shards embeddings and last norm as separate units, which it gets from the model by these attributes. That
# fails for models with two towers (no single embedding) and with tied biases; and a model that compares its towers
# needs both of them gathered at the same time.
HIDDEN_ATTRIBUTES = {
    "get_input_embeddings": lambda: None,
    "get_output_embeddings": lambda: None,
    "base_model_prefix": "-",
}


class _RestoreHiddenAttributes(TrainerCallback):
    """Restores the hidden attributes after the model is sharded."""

    def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
        """Runs after accelerate has sharded the model."""
        for name in HIDDEN_ATTRIBUTES:
            model.__dict__.pop(name, None)


def _enable_fsdp_on_cpu(trainer: Trainer) -> None:
    """Enable FSDP on a CPU, where it works although accelerate 1.15 sets it up on accelerators only."""
    settings: Any = trainer.args.fsdp_plugin_args
    for state in (PartialState(), trainer.accelerator.state):
        state.distributed_type = DistributedType.FSDP
    trainer.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)
    trainer.is_fsdp_enabled = True


def _average_gradient(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad.div_(dist.get_world_size())


def _split_scalar_groups(optimizer: torch.optim.Optimizer) -> None:
    """Put scalars into groups of their own: a fused kernel takes either sharded or plain parameters."""
    for group in list(optimizer.param_groups):
        scalars = [parameter for parameter in group["params"] if not parameter.ndim]
        if scalars and len(scalars) < len(group["params"]):
            group["params"] = [parameter for parameter in group["params"] if parameter.ndim]
            optimizer.add_param_group({**group, "params": scalars})
