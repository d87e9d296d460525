"""Supervised fine-tuning on conversations with TRL's SFTTrainer, in one process or as a member of a process group.

A family whose config sets `packs_turns` trains on all turns about an image in one sequence; the others train on one
turn a row.
"""

from pathlib import Path
from typing import Any

import datasets
from transformers import Trainer, set_seed
from trl import SFTConfig, SFTTrainer

from models.tiny.packing import PackedCollator
from models.zoo import ZOO
from vlmflow.artifacts import checkpoint
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes
from vlmflow.inference.loading import load
from vlmflow.runtime.code_hash import code_hash
from vlmflow.training.arguments import trainer_arguments
from vlmflow.training.checkpointing import open_checkpoints
from vlmflow.training.finetuning.config import FineTuneConfig
from vlmflow.training.finetuning.examples import Example, select_examples
from vlmflow.training.finetuning.rows import TRL_FEATURES, RowLookup, pack_turns, to_trl_rows
from vlmflow.training.fsdp import gather_state_dict, prepare_trainer
from vlmflow.training.progress import Progress


def train(model_in: Path, conversations: Path, section: FineTuneConfig, step: str, out: Path) -> None:
    """Fine-tune on the training split of the conversations; `run_distributed` calls it in each process."""
    data = Dataset(conversations, "conversations")
    fit(model_in, select_examples(data, section), out, section, step=step, data=data)


def fit(
    model_in: Path, examples: list[Example], out: Path, section: FineTuneConfig, *, step: str, data: Dataset
) -> None:
    """Fine-tune the model at `model_in` on `examples`; process 0 writes the checkpoint to `out`."""
    training = section.training
    set_seed(training.seed)
    model, processor, family = _load_or_build(model_in, section, step)
    progress = Progress()
    parent = Checkpoint(model_in).hash
    identity = {"parent": parent, "data": data.hash, "section": section.model_dump(), "code": code_hash(__name__)}
    with open_checkpoints(training, step=step, **identity) as checkpoints:
        options = trainer_arguments(training, checkpoints.folder, max_length=None, activation_checkpointing=False)
        build_trainer = _packed_trainer if getattr(model.config, "packs_turns", False) else _turn_trainer
        callbacks = [progress, *checkpoints.callbacks]
        trainer = build_trainer(examples, model, processor, options, callbacks)
        checkpoints.train(prepare_trainer(trainer, training))
        state_dict = gather_state_dict(trainer)
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
                notes={"images": len(examples), "turns": sum(len(example.turns) for example in examples)},
            )


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
    examples: list[Example], model: Any, processor: Any, options: dict[str, Any], callbacks: list[Any]
) -> SFTTrainer:
    rows = pack_turns(examples, model, processor)
    options["ddp_find_unused_parameters"] = False  # every trainable parameter takes part in every batch
    return _OwnLossTrainer(
        model=model,
        args=SFTConfig(**options),
        train_dataset=datasets.Dataset.from_dict({"i": range(len(rows)), "images": [[]] * len(rows)}),
        data_collator=RowLookup(rows, PackedCollator(model.config.image_token_id, processor.image_tokens, 0)),
        processing_class=processor,
        callbacks=callbacks,
    )


def _turn_trainer(
    examples: list[Example], model: Any, processor: Any, options: dict[str, Any], callbacks: list[Any]
) -> SFTTrainer:
    return SFTTrainer(
        model=model,
        args=SFTConfig(**options),
        train_dataset=datasets.Dataset.from_list(to_trl_rows(examples, processor), features=TRL_FEATURES),
        processing_class=processor,
        callbacks=callbacks,
    )
