"""Pretraining of any family of the zoo on the pairs of a dataset."""

import inspect
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import AutoConfig, AutoProcessor, Trainer, TrainerCallback, TrainingArguments, set_seed

from models.contrastive import patch_dropout
from models.zoo import ZOO
from vlmflow.artifacts import checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes
from vlmflow.errors import DataError, ModelError, RecipeError
from vlmflow.runtime.code_hash import code_hash
from vlmflow.training.arguments import Progress, steps_for_seconds, trainer_arguments
from vlmflow.training.checkpointing import Checkpoints, open_checkpoints
from vlmflow.training.config import TrainingConfig
from vlmflow.training.fsdp import gather_state_dict, prepare_trainer
from vlmflow.training.launcher import run_distributed
from vlmflow.training.pretraining.callbacks import ClampLogitScale, EMACallback
from vlmflow.training.pretraining.collator import PretrainCollator
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.hard_negative_sampler import HardNegativeSampler
from vlmflow.training.pretraining.shuffled_control import shuffle_pairs


def pretrain(*, pairs: Path, conversations: Path | None, out: Path, section: PretrainConfig) -> None:
    """Train a family of the zoo and write a checkpoint to `out`.

    Args:
        pairs: the dataset of schema `pairs`; its training split is learned from.
        conversations: the task sets, whose words the vocabulary must hold for the stages to come.

    Raises:
        DataError: fewer captioned pairs than one batch.
    """
    run_distributed("pretrain", train, section.training, pairs, corpus(pairs, conversations), section, out=out)


def corpus(pairs: Path, conversations: Path | None) -> list[str]:
    """The training split's texts, for a vocabulary: captions, phrases, questions and answers."""
    texts: list[str] = []
    for row in Dataset(pairs, "pairs").rows(["caption", "regions", "split"]):
        if row["split"] == "train":
            texts.append(row["caption"])
            texts += [region["phrase"] for region in row["regions"] or []]
    if conversations is not None:
        for row in Dataset(conversations, "conversations").rows(["messages", "task", "split"]):
            if row["split"] == "train":
                # What is read is spelled: a line's words are no vocabulary.
                role = "user" if row["task"] in ("ocr", "ground") else None
                texts += [m["content"] for m in row["messages"] if role in (None, m["role"])]
    return texts


def train(pairs: Path, texts: list[str], section: PretrainConfig, out: Path) -> None:
    """Train `section.family` on the captioned training pairs; process 0 writes the checkpoint to `out`.

    Raises:
        DataError: fewer captioned pairs than one batch.
        ModelError: `section.init_from` names no such model.
        RecipeError: an option that the family has no place for.
    """
    training = section.training
    data = Dataset(pairs, "pairs")
    table = data.table(["image", "caption", "split"])
    keep = [
        i
        for i, (caption, split) in enumerate(zip(table["caption"].to_pylist(), table["split"].to_pylist(), strict=True))
        if split == "train" and caption.strip()
    ]
    if len(keep) < training.batch_size:
        raise DataError(
            f"{pairs}: {len(keep)} training pairs with a caption are fewer than batch_size {training.batch_size}; "
            "give more data or a smaller batch"
        )
    table = table.take(keep)
    set_seed(training.seed)
    model, processor = build_or_load(section, texts)
    batches = PretrainCollator(model, processor, section)
    check_options(section, model, batches)
    rows = batches.make_rows([image["bytes"] for image in table["image"].to_pylist()], table["caption"].to_pylist())
    if section.shuffle_pairs:
        rows = shuffle_pairs(rows, batches.patch_size, training.seed)
    batches.fit_negatives(rows)
    run = partial(fit, rows=rows, batches=batches, section=section)
    if training.seconds is not None:
        training = steps_for_seconds(training, lambda trial, clock: run(deepcopy(model), trial, [clock]))
    progress = Progress()
    what = {"data": data.hash, "texts": texts, "section": section.model_dump(), "code": code_hash(__name__)}
    with open_checkpoints(training, step="pretrain", **what) as kept:
        writes, whole = run(model, training, [progress], kept=kept) if training.max_steps else (True, None)
        if writes:
            checkpoint.save(
                out,
                model,
                processor,
                weights=whole,
                family=section.family,
                step="pretrain",
                recipe=section.model_dump(),
                parent=section.init_from,
                datasets=[data.hash],
                curve=progress.curve,
                notes={"pairs": len(rows), "parameters": model.num_parameters()},
            )


def check_options(section: PretrainConfig, model: Any, batches: PretrainCollator) -> None:
    """Raise RecipeError where `section` asks for what the family has no place for."""
    takes, tower = inspect.signature(model.forward).parameters, patch_dropout.tower(model)
    needs = {
        "augment": (section.augment, batches.image_processor, "sees no pictures"),
        "views": (section.views, batches.views, "compares no views; give its model a slip_weight where it takes one"),
        "negatives": (section.negatives, "negative_input_ids" in takes, "takes no negative captions; clip does"),
        "hard_negative_fraction": (section.hard_negative_fraction, batches.tokenizer, "reads no captions"),
        "max_logit_scale": (section.max_logit_scale, hasattr(model, "logit_scale"), "has no logit_scale"),
        "patch_dropout": (section.patch_dropout, tower is not None, "has no picture tower that can do without patches"),
    }
    for name, (asked, there, why) in needs.items():
        if asked and not there:
            raise RecipeError(f"pretrain.{name}: {getattr(section, name)!r}: the family {section.family!r} {why}")
    if section.training.sharding != "none" and getattr(model.config, "langevin_steps", 0):
        raise RecipeError(
            f"pretrain.training.sharding: {section.training.sharding!r}: the family {section.family!r} takes gradients "
            "inside its forward, which FSDP2 holds for the end of the step; leave it out, or set model.langevin_steps 0"
        )


class SamplerTrainer(Trainer):
    """The library's trainer, which takes rows in an `order` where one is given."""

    order: Sampler[int] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order or super()._get_train_sampler(train_dataset)


def fit(
    model: Any,
    training: TrainingConfig,
    callbacks: list[TrainerCallback],
    *,
    rows: list[dict[str, Any]],
    batches: PretrainCollator,
    section: PretrainConfig,
    kept: Checkpoints | None = None,
) -> tuple[bool, dict[str, torch.Tensor] | None]:
    """Train `model` in place; returns whether this process is the one that writes, and the weights if not `model`'s."""
    if section.max_logit_scale is not None:
        callbacks = [*callbacks, ClampLogitScale(section.max_logit_scale)]
    if section.ema is not None:
        callbacks = [*callbacks, EMACallback(section.ema)]
    if section.patch_dropout:
        patch_dropout.attach(model, section.patch_dropout)
    with open_checkpoints(training) if kept is None else nullcontext(kept) as kept:
        options = trainer_arguments(
            training,
            kept.folder,
            dataloader_drop_last=True,  # the whole batch gives the negatives: a short one is a different task
            ddp_find_unused_parameters=ZOO[section.family].paradigm != "contrastive",
        )
        trainer = SamplerTrainer(
            model=model,
            args=TrainingArguments(**options),
            train_dataset=rows,  # type: ignore[arg-type]  # a list is a map-style dataset
            data_collator=kept.make_repeatable(batches),
            callbacks=[*callbacks, *kept.callbacks],
        )
        prepare_trainer(trainer, training)
        if section.hard_negative_fraction:
            captions = [row["caption"] for row in rows]
            trainer.order = HardNegativeSampler(
                captions, training.batch_size, section.hard_negative_fraction, training.seed
            )
        # What is drawn for a batch (crops, masks) is drawn by each process for its own part.
        torch.manual_seed(training.seed + trainer.args.process_index)
        kept.train(trainer)
        return trainer.is_world_process_zero(), gather_state_dict(trainer)


def build_or_load(section: PretrainConfig, texts: list[str]) -> tuple[Any, Any]:
    """The model to train and its processor: new, or `section.init_from`'s weights, from a folder or the Hub.

    Raises:
        RecipeError: sizes that the family does not have, or that do not go together.
        ModelError: no such model, or one of another family.
    """
    family = ZOO[section.family]
    if section.init_from is None:
        return recipes.call(family.build, texts, values=section.model, where="pretrain.model")
    try:
        found = AutoConfig.from_pretrained(section.init_from).model_type
        if found != (wanted := family.cls.config_class.model_type):
            raise ValueError(f"it is a {found}, not a {wanted}")  # transformers would make up the weights
        return family.cls.from_pretrained(section.init_from), AutoProcessor.from_pretrained(section.init_from)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"pretrain.init_from {section.init_from!r}: cannot be loaded as {section.family}: {' '.join(str(error).split())}"
        ) from error
