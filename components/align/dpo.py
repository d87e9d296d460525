"""The two trainings of the alignment step: DPO on preference pairs, and its control on the preferred answers alone.

Source: Rafailov et al. 2023, eq. 7 (TRL's DPOTrainer); the `sft` term beside it as in Pang et al. 2024.
"""

from pathlib import Path
from typing import Any

import datasets
from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from components.align.config import AlignConfig
from vlmflow.artifacts import checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.inference.loading import load
from vlmflow.runtime.code_hash import code_hash
from vlmflow.training.arguments import trainer_arguments
from vlmflow.training.checkpointing import open_checkpoints
from vlmflow.training.finetuning.config import FineTuneConfig
from vlmflow.training.finetuning.examples import Example
from vlmflow.training.finetuning.sft import fit
from vlmflow.training.finetuning.trl_rows import IMAGES, MESSAGES, AugmentingCollator, image_columns, to_messages
from vlmflow.training.fsdp import gather_state_dict, prepare_trainer
from vlmflow.training.progress import Progress

FEATURES = datasets.Features({**IMAGES, "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES})


def train_control(start: Path, preferences: Path, config: AlignConfig, out: Path) -> None:
    """Fine-tune the model at `start` on the preferred answers alone; process 0 writes the checkpoint to `out`."""
    data = Dataset(preferences, "preferences")
    examples = [Example(_images(row), [(row["prompt"], row["chosen"])], {"objects"}) for row in data.rows()]
    section = FineTuneConfig(task="objects", training=config.training, augment=config.augment)
    fit(start, examples, out, section, step="control", data=data)


def train_dpo(start: Path, preferences: Path, config: AlignConfig, out: Path) -> None:
    """Align the model at `start` by DPO, with itself as the reference; process 0 writes the checkpoint to `out`."""
    data, loaded, training = Dataset(preferences, "preferences"), load(start), config.training
    set_seed(training.seed)
    model = loaded.model.train()
    progress = Progress()
    parent = checkpoint.Checkpoint(start).hash
    identity = {"parent": parent, "data": data.hash, "section": config.model_dump(), "code": code_hash(__name__)}
    with open_checkpoints(training, step="align", **identity) as checkpoints:
        options: Any = trainer_arguments(training, checkpoints.folder, max_length=None, activation_checkpointing=False)
        losses = {"beta": config.beta, "loss_type": list(config.losses), "loss_weights": list(config.weights)}
        trainer = DPOTrainer(
            model=model,
            ref_model=load(start).model,
            args=DPOConfig(**options, **losses),
            train_dataset=datasets.Dataset.from_list([_to_trl(row) for row in data.rows()], features=FEATURES),
            processing_class=loaded.processor,
            callbacks=[progress, *checkpoints.callbacks],
        )
        collator = AugmentingCollator(trainer.data_collator, loaded.processor, config.augment)
        trainer.data_collator = checkpoints.make_repeatable(collator)
        checkpoints.train(prepare_trainer(trainer, training))
        state_dict = gather_state_dict(trainer)
        if trainer.is_world_process_zero():
            checkpoint.save(
                out,
                trainer.accelerator.unwrap_model(trainer.model),
                loaded.processor,
                weights=state_dict,
                family=loaded.card.get("family", ""),
                step="align",
                recipe=config.model_dump(),
                parent=parent,
                datasets=[data.hash],
                curve=progress.curve,
                notes={"pairs": len(data)},
            )


def _images(row: dict[str, Any]) -> tuple[bytes, ...]:
    return tuple(image["bytes"] for image in row["images"])


def _to_trl(row: dict[str, Any]) -> dict[str, Any]:
    """A row of schema `preferences` in TRL's conversational format."""
    images = _images(row)
    return {
        **image_columns(images, augment=True),
        "prompt": to_messages("user", row["prompt"], len(images)),
        "chosen": to_messages("assistant", row["chosen"]),
        "rejected": to_messages("assistant", row["rejected"]),
    }
