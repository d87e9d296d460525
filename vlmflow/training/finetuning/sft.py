"""Supervised fine-tuning on conversations with TRL's SFTTrainer, in one process or as a member of a process group.

A family whose config sets `packs_turns` trains on all turns about an image in one sequence; the others train on one
turn a row.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, set_seed
from trl import SFTConfig, SFTTrainer

from models.zoo import ZOO
from vlmflow.artifacts import checkpoint
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes
from vlmflow.inference.loading import load
from vlmflow.runtime.code_hash import code_hash
from vlmflow.training.arguments import trainer_arguments
from vlmflow.training.checkpointing import open_checkpoints
from vlmflow.training.config import TrainingConfig
from vlmflow.training.finetuning.config import EarlyStoppingConfig, FineTuneConfig
from vlmflow.training.finetuning.examples import Example, hold_out, select_examples
from vlmflow.training.finetuning.packed_rows import PackedRows
from vlmflow.training.finetuning.trl_rows import AugmentingCollator, to_trl_dataset
from vlmflow.training.fsdp import gather_state_dict, prepare_trainer
from vlmflow.training.progress import Progress


def train(model_in: Path, conversations: Path, section: FineTuneConfig, step: str, out: Path) -> None:
    """Fine-tune on the training split of the conversations; `run_distributed` calls it in each process."""
    data = Dataset(conversations, "conversations")
    fit(model_in, select_examples(data, section), out, section, step=step, data=data)


def fit(
    model_in: Path, examples: list[Example], out: Path, section: FineTuneConfig, *, step: str, data: Dataset
) -> None:
    """Fine-tune the model at `model_in` on `examples`; process 0 writes the checkpoint to `out`.

    Raises:
        DataError: too few images to hold some out for early stopping, or examples that the family cannot read.
    """
    training, stopping = section.training, section.early_stopping
    held_out: list[Example] = []
    if stopping:
        examples, held_out = hold_out(examples, stopping.holdout, training.seed)
        training = training.model_copy(update={"save_every": stopping.every})
    set_seed(training.seed)
    model, processor, family = _load_or_build(model_in, section, step)
    progress = Progress()
    parent = Checkpoint(model_in).hash
    identity = {"parent": parent, "data": data.hash, "section": section.model_dump(), "code": code_hash(__name__)}
    with open_checkpoints(training, keep_best=bool(stopping), step=step, **identity) as checkpoints:
        more = _early_stopping_arguments(stopping, training) if stopping else {}
        options = trainer_arguments(
            training, checkpoints.folder, max_length=None, activation_checkpointing=False, **more
        )
        build_trainer = _packed_trainer if getattr(model.config, "packs_turns", False) else _turn_trainer
        stop = [EarlyStoppingCallback(stopping.patience)] if stopping else []
        callbacks = [progress, *stop, *checkpoints.callbacks]
        trainer = build_trainer(examples, held_out, model, processor, section, options, callbacks)
        trainer.data_collator = checkpoints.make_repeatable(trainer.data_collator)
        torch.manual_seed(training.seed + trainer.args.process_index)  # each process augments its own images
        checkpoints.train(prepare_trainer(trainer, training))
        state_dict, state = gather_state_dict(trainer), trainer.state
        notes = {"images": len(examples), "turns": sum(len(example.turns) for example in examples)}
        if stopping:
            best = {"best_step": state.best_global_step, "held_out_loss": state.best_metric}
            notes |= {"held_out_images": len(held_out), "stopped_at": state.global_step, **best}
        if trainer.is_world_process_zero():
            checkpoint.save(
                out,
                trainer.accelerator.unwrap_model(trainer.model),
                processor,
                weights=state_dict,
                family=family,
                step=step,
                recipe=section.model_dump(),
                parent=parent,
                datasets=[data.hash],
                curve=progress.curve,
                notes=notes,
            )


def _early_stopping_arguments(stopping: EarlyStoppingConfig, training: TrainingConfig) -> dict[str, Any]:
    return {
        "eval_strategy": "steps",
        "eval_steps": stopping.every,
        "per_device_eval_batch_size": training.batch_size // training.world,
        "prediction_loss_only": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "restore_callback_states_from_checkpoint": True,  # a resumed training keeps its patience
    }


def _load_or_build(model_in: Path, section: FineTuneConfig, step: str) -> tuple[Any, Any, str]:
    """The model to train, its processor and its family: `model_in`, or a new language model on its image tower."""
    loaded = load(model_in)
    family = loaded.card.get("family", "")
    if section.family and section.family != family:
        build, values = ZOO[section.family].from_dual_encoder, section.model
        model, processor = recipes.call(build, loaded.model, loaded.processor, values=values, where=f"{step}.model")
        return model, processor, section.family
    return loaded.model.train(), loaded.processor, family


class _OwnLossTrainer(SFTTrainer):
    """SFTTrainer with the model's own loss, which scores the tokens of answers only.

    TRL's fused head would score every position on a CPU.
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return Trainer.compute_loss(self, model, inputs, return_outputs=return_outputs)


def _packed_trainer(
    examples: list[Example],
    held_out: list[Example],
    model: Any,
    processor: Any,
    section: FineTuneConfig,
    options: dict[str, Any],
    callbacks: list[Any],
) -> SFTTrainer:
    rows = PackedRows([*examples, *held_out], model, processor, section.augment)
    options["ddp_find_unused_parameters"] = False  # every trainable parameter takes part in every batch
    count = len(examples)
    return _OwnLossTrainer(
        model=model,
        args=SFTConfig(**options),
        train_dataset=rows.dataset(range(count), augment=True),
        eval_dataset=rows.dataset(range(count, count + len(held_out)), augment=False) if held_out else None,
        data_collator=rows,
        processing_class=processor,
        callbacks=callbacks,
    )


def _turn_trainer(
    examples: list[Example],
    held_out: list[Example],
    model: Any,
    processor: Any,
    section: FineTuneConfig,
    options: dict[str, Any],
    callbacks: list[Any],
) -> SFTTrainer:
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**options),
        train_dataset=to_trl_dataset(examples, augment=True),
        eval_dataset=to_trl_dataset(held_out, augment=False) if held_out else None,
        processing_class=processor,
        callbacks=callbacks,
    )
    trainer.data_collator = AugmentingCollator(trainer.data_collator, processor, section.augment)
    return trainer
