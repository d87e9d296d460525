"""Pretraining of any family of the zoo on the pairs of a dataset."""

import inspect
import logging
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import Sampler
from transformers import AutoConfig, AutoProcessor, Trainer, TrainerCallback, TrainingArguments, set_seed

from models import patch_dropout
from models.zoo import ZOO
from vlmflow.artifacts import checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes
from vlmflow.errors import DataError, ModelError, RecipeError
from vlmflow.inference.inputs import max_caption_tokens
from vlmflow.runtime.code_hash import code_hash
from vlmflow.training.arguments import trainer_arguments
from vlmflow.training.checkpointing import Checkpoints, open_checkpoints
from vlmflow.training.config import TrainingConfig
from vlmflow.training.fsdp import gather_state_dict, prepare_trainer
from vlmflow.training.launcher import run_distributed
from vlmflow.training.pretraining.callbacks import ClampLogitScale, EMACallback
from vlmflow.training.pretraining.collator import PretrainCollator
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.hard_negative_sampler import HardNegativeSampler
from vlmflow.training.pretraining.shuffled_control import shuffle_pairs
from vlmflow.training.progress import Progress
from vlmflow.training.time_budget import steps_for_seconds

logger = logging.getLogger(__name__)


def pretrain(*, pairs: Path, conversations: Path | None, out: Path, section: PretrainConfig) -> None:
    """Train a family of the zoo and write a checkpoint to `out`, in the processes of `section.training`.

    Args:
        pairs: a dataset of schema `pairs`, of which the training split is used.
        conversations: conversations of later stages, whose words the vocabulary must contain.

    Raises:
        DataError: fewer captioned pairs than one batch.
    """
    run_distributed("pretrain", train, section.training, pairs, corpus(pairs, conversations), section, out=out)


def corpus(pairs: Path, conversations: Path | None) -> list[str]:
    """The texts of the training split, for a vocabulary: captions, phrases, questions and answers."""
    texts: list[str] = []
    for row in Dataset(pairs, "pairs").rows(["caption", "regions", "split"]):
        if row["split"] == "train":
            texts.append(row["caption"])
            texts += [region["phrase"] for region in row["regions"] or []]
    if conversations is not None:
        for row in Dataset(conversations, "conversations").rows(["messages", "task", "split"]):
            if row["split"] == "train":
                # OCR answers are spelled letter by letter, and grounding answers are location tokens.
                role = "user" if row["task"] in ("ocr", "ground") else None
                texts += [m["content"] for m in row["messages"] if role in (None, m["role"])]
    return texts


def train(pairs: Path, texts: list[str], section: PretrainConfig, out: Path) -> None:
    """Train `section.family` on the captioned training pairs; process 0 writes the checkpoint to `out`.

    Raises:
        DataError: fewer captioned pairs than one batch.
        ModelError: `section.init_from` is not a model of the family.
        RecipeError: an option that the family does not support.
    """
    training = section.training
    data = Dataset(pairs, "pairs")
    images, captions = _captioned_pairs(data, training.batch_size)
    set_seed(training.seed)
    model, processor = build_or_load(section, texts)
    collator = PretrainCollator(model, processor, section)
    check_options(section, model, collator)
    warn_of_long_captions(collator, captions)
    rows = collator.make_rows(images, captions)
    if section.shuffle_pairs:
        rows = shuffle_pairs(rows, collator.patch_size, training.seed)
    collator.fit_negatives(rows)
    run = partial(fit, rows=rows, collator=collator, section=section)
    if training.seconds is not None:
        training = steps_for_seconds(training, lambda trial, clock: run(deepcopy(model), trial, [clock]))
    progress = Progress()
    identity = {"data": data.hash, "texts": texts, "section": section.model_dump(), "code": code_hash(__name__)}
    with open_checkpoints(training, step="pretrain", **identity) as checkpoints:
        is_writer, state_dict = True, None
        if training.max_steps:
            is_writer, state_dict = run(model, training, [progress], checkpoints=checkpoints)
        if is_writer:
            checkpoint.save(
                out,
                model,
                processor,
                weights=state_dict,
                family=section.family,
                step="pretrain",
                recipe=section.model_dump(),
                parent=section.init_from,
                datasets=[data.hash],
                curve=progress.curve,
                notes={"pairs": len(rows), "parameters": model.num_parameters()},
            )


def _captioned_pairs(data: Dataset, batch_size: int) -> tuple[list[bytes], list[str]]:
    """Encoded images and captions of the training split, without pairs whose caption is empty."""
    table = data.table(["image", "caption", "split"])
    columns = zip(table["caption"].to_pylist(), table["split"].to_pylist(), strict=True)
    indices = [i for i, (caption, split) in enumerate(columns) if split == "train" and caption.strip()]
    if len(indices) < batch_size:
        raise DataError(
            f"{data.path}: {len(indices)} training pairs with a caption are fewer than batch_size {batch_size}; "
            "add data or reduce the batch size"
        )
    table = table.take(indices)
    return [image["bytes"] for image in table["image"].to_pylist()], table["caption"].to_pylist()


def warn_of_long_captions(collator: PretrainCollator, captions: list[str]) -> None:
    """Warn of captions that are longer than the text tower reads."""
    if collator.tokenizer is None:
        return
    limit = max_caption_tokens(collator.config)
    lengths = [len(ids) for ids in collator.tokenizer(captions, return_token_type_ids=False)["input_ids"]]
    if count := sum(length > limit for length in lengths):
        message = "%d of %d captions are longer than the %d tokens that the text tower reads, up to %d, and are cut"
        logger.warning(message, count, len(captions), limit, max(lengths))


def check_options(section: PretrainConfig, model: Any, collator: PretrainCollator) -> None:
    """Raise RecipeError if `section` sets an option that the family does not support."""
    inputs, tower = inspect.signature(model.forward).parameters, patch_dropout.find_patch_embeddings(model)
    options = {
        "augment": (section.augment, collator.image_processor, "has no image input"),
        "views": (section.views, collator.views, "compares no views; set model.slip_weight if the family has it"),
        "negatives": (section.negatives, "negative_input_ids" in inputs, "takes no negative captions; clip does"),
        "hard_negative_fraction": (section.hard_negative_fraction, collator.tokenizer, "has no text input"),
        "max_logit_scale": (section.max_logit_scale, hasattr(model, "logit_scale"), "has no logit_scale"),
        "patch_dropout": (section.patch_dropout, tower is not None, "has no image tower that supports patch dropout"),
    }
    for name, (value, is_supported, reason) in options.items():
        if value and not is_supported:
            raise RecipeError(f"pretrain.{name}: {value!r}: the family {section.family!r} {reason}")
    if section.training.sharding != "none" and getattr(model.config, "langevin_steps", 0):
        raise RecipeError(
            f"pretrain.training.sharding: {section.training.sharding!r}: the family {section.family!r} takes gradients "
            "inside its forward pass, which FSDP2 does not support; remove sharding, or set model.langevin_steps to 0"
        )


class SamplerTrainer(Trainer):
    """transformers' Trainer, with its own sampler of the training rows if `order` is set."""

    order: Sampler[int] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order or super()._get_train_sampler(train_dataset)


def fit(
    model: Any,
    training: TrainingConfig,
    callbacks: list[TrainerCallback],
    *,
    rows: list[dict[str, Any]],
    collator: PretrainCollator,
    section: PretrainConfig,
    checkpoints: Checkpoints | None = None,
) -> tuple[bool, dict[str, torch.Tensor] | None]:
    """Train `model` in place.

    Returns:
        Whether this process writes the checkpoint, and the full state dict of a sharded model, else None.
    """
    if section.max_logit_scale is not None:
        callbacks = [*callbacks, ClampLogitScale(section.max_logit_scale)]
    if section.ema is not None:
        callbacks = [*callbacks, EMACallback(section.ema)]
    if section.patch_dropout:
        patch_dropout.attach(model, section.patch_dropout)
    with open_checkpoints(training) if checkpoints is None else nullcontext(checkpoints) as checkpoints:
        options = trainer_arguments(
            training,
            checkpoints.folder,
            dataloader_drop_last=True,  # negatives come from the batch: a short one is an easier task
            ddp_find_unused_parameters=not ZOO[section.family].uses_all_parameters,
        )
        trainer = SamplerTrainer(
            model=model,
            args=TrainingArguments(**options),
            train_dataset=rows,  # type: ignore[arg-type]  # a list is a map-style dataset
            data_collator=checkpoints.make_repeatable(collator),
            callbacks=[*callbacks, *checkpoints.callbacks],
        )
        prepare_trainer(trainer, training)
        if section.hard_negative_fraction:
            captions = [row["caption"] for row in rows]
            trainer.order = HardNegativeSampler(
                captions, training.batch_size, section.hard_negative_fraction, training.seed
            )
        # Each process draws crops and masks for its own part of a batch.
        torch.manual_seed(training.seed + trainer.args.process_index)
        checkpoints.train(trainer)
        return trainer.is_world_process_zero(), gather_state_dict(trainer)


def build_or_load(section: PretrainConfig, texts: list[str]) -> tuple[Any, Any]:
    """The model to train and its processor: new, or loaded from `section.init_from`, a folder or a Hub id.

    Raises:
        RecipeError: an unknown or invalid size in `section.model`.
        ModelError: `init_from` cannot be loaded, is of another family, or lacks weights.
    """
    family = ZOO[section.family]
    if section.init_from is None:
        return recipes.call(family.build, texts, values=section.model, where="pretrain.model")
    try:
        model_type = AutoConfig.from_pretrained(section.init_from, trust_remote_code=False).model_type
        if model_type != (expected := family.model_class.config_class.model_type):
            raise ValueError(
                f"its model_type is {model_type}, not {expected}"
            )  # transformers would initialise at random
        model = checkpoint.load_weights(family.model_class, section.init_from, partial(_own_weights, section.init_from))
        return model, AutoProcessor.from_pretrained(section.init_from, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, ModelError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"pretrain.init_from {section.init_from!r}: cannot be loaded as {section.family}: {reason}"
        ) from error


def _own_weights(init_from: str, model: Any) -> set[str]:
    """Weights that only one of `model` and transformers' class of the checkpoint has, and which may therefore differ.

    A family adds parts to a published model (Llip's mixture), or leaves some out (BERT's next-sentence head).
    """
    config = AutoConfig.from_pretrained(init_from, trust_remote_code=False)
    published = getattr(transformers, (config.architectures or [""])[0], None)
    if published is None:
        return set()
    with torch.device("meta"):
        theirs = published(config).state_dict().keys()
    prefix = f"{model.base_model_prefix}."  # a bare base model is saved without it
    ours = model.state_dict().keys()
    common = {name.removeprefix(prefix) for name in ours} & {name.removeprefix(prefix) for name in theirs}
    return {name for name in ours | theirs if name.removeprefix(prefix) not in common}
