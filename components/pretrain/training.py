"""Pretraining of any family of the zoo on the pairs of a dataset."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, Trainer, TrainingArguments, set_seed

from components import checkpoint
from components.batches import Batches
from components.dataset import Dataset
from components.errors import DataError, ModelError
from components.pretrain.control import deal
from components.pretrain.pretraining import Pretraining
from components.training import Progress, arguments, optimizers
from models.zoo import ZOO


def train(pairs: str, texts: list[str], out: str, section: Pretraining) -> None:
    """Train `section.family` on the captioned training pairs; process 0 writes the checkpoint to `out`.

    Raises:
        DataError: fewer captioned pairs than one batch.
        ModelError: `section.start` names no such model.
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
    model, processor = begin(section, texts)
    batches = Batches(model, processor)
    rows = batches.rows([image["bytes"] for image in table["image"].to_pylist()], table["caption"].to_pylist())
    if section.shuffle_pairs:
        rows = deal(rows, batches.patch, training.seed)
    progress = Progress()
    if training.max_steps:
        with tempfile.TemporaryDirectory() as folder:
            options = arguments(
                training,
                Path(folder),
                dataloader_drop_last=True,  # the whole batch gives the negatives: a short one is a different task
                ddp_find_unused_parameters=ZOO[section.family].paradigm != "contrastive",
            )
            trainer = Trainer(
                model=model,
                args=TrainingArguments(**options),
                train_dataset=rows,  # type: ignore[arg-type]  # a list is a map-style dataset
                data_collator=batches,
                optimizers=optimizers(model, training),
                callbacks=[progress],
            )
            trainer.train()
            if not trainer.is_world_process_zero():
                return
    checkpoint.save(
        out,
        model,
        processor,
        family=section.family,
        step="pretrain",
        recipe=section.plain(),
        parent=section.start,
        datasets=[data.hash],
        curve=progress.curve,
        notes={"pairs": len(rows), "parameters": model.num_parameters()},
    )


def begin(section: Pretraining, texts: list[str]) -> tuple[Any, Any]:
    """The model to train and its processor: new, or `section.start`'s weights, from a folder or the Hub.

    Raises:
        ModelError: no such model, or one of another family.
    """
    family = ZOO[section.family]
    if section.start is None:
        return family.build(texts, **section.model)
    try:
        return family.cls.from_pretrained(section.start), AutoProcessor.from_pretrained(section.start)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"pretrain.start {section.start!r}: cannot be loaded as {section.family}: {' '.join(str(error).split())}"
        ) from error
