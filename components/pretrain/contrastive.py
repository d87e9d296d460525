"""Contrastive pretraining of any dual encoder of the zoo on the pairs of a dataset."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments, set_seed

import models.sketch  # noqa: F401  registers the family with the Auto classes
from components import checkpoint
from components.dataset import Dataset
from components.errors import DataError
from components.inference import tokenize_captions
from components.pixels import decode, squares
from components.pretrain.pretraining import Pretraining
from components.training import Progress, arguments, optimizers
from models.zoo import ZOO


def train(pairs: str, texts: list[str], out: str, section: Pretraining) -> None:
    """Train `section.family` on the captioned training pairs; process 0 writes the checkpoint to `out`.

    Raises:
        DataError: fewer captioned pairs than one batch.
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
    model, processor = ZOO[section.family].build(texts, **section.model)
    collator = _Collator(model, processor)
    rows = collator.prepare([image["bytes"] for image in table["image"].to_pylist()], table["caption"].to_pylist())
    if section.shuffle_pairs:
        order = np.random.default_rng(training.seed).permutation(len(rows))
        rows = [{"pixels": row["pixels"], "caption": rows[j]["caption"]} for row, j in zip(rows, order, strict=True)]
    progress = Progress()
    with tempfile.TemporaryDirectory() as folder:
        # The whole batch gives the negatives, so a last short one would be a different task.
        options = arguments(training, Path(folder), dataloader_drop_last=True, ddp_find_unused_parameters=False)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**options),
            train_dataset=rows,  # type: ignore[arg-type]  # a list is a map-style dataset
            data_collator=collator,
            optimizers=optimizers(model, training),
            callbacks=[progress],
        )
        trainer.train()
    if trainer.is_world_process_zero():
        checkpoint.save(
            out,
            model,
            processor,
            family=section.family,
            step="pretrain",
            recipe=section.plain(),
            parent=None,
            datasets=[data.hash],
            curve=progress.curve,
            notes={"pairs": len(rows)},
        )


class _Collator:
    """Rows of pixels and a caption's ids to the model's own batch."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.sketch = model.config.model_type == "sketch"

    def prepare(self, images: list[bytes], captions: list[str]) -> list[dict[str, Any]]:
        """Decode every picture once, before the first step."""
        if self.sketch:
            pixels: Any = squares(images, self.model.config.image_size)
        else:
            pixels = [self.processor.image_processor(decode(i), return_tensors="np")["pixel_values"][0] for i in images]
        return [{"pixels": p, "caption": caption} for p, caption in zip(pixels, captions, strict=True)]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        captions = tokenize_captions(self.processor.tokenizer, self.model.config, [row["caption"] for row in rows])
        pixels = torch.from_numpy(np.stack([row["pixels"] for row in rows]))
        return {**captions, "pixel_values": pixels, "return_loss": True}  # type: ignore[dict-item]
