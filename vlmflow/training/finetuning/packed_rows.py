"""Training rows of a family that reads all turns about an image in one sequence."""

import logging
from functools import cache, partial
from typing import Any

import datasets
import numpy as np
import torch

from models.tiny.packing import PackedCollator
from vlmflow.errors import DataError
from vlmflow.images.boxes import CANONICAL
from vlmflow.images.decoding import decode, resize_square
from vlmflow.inference.generation import chat_prompt
from vlmflow.training.augment import augment_with_views
from vlmflow.training.augment_config import AugmentConfig
from vlmflow.training.finetuning.box_views import bounding_boxes, transcode_view
from vlmflow.training.finetuning.examples import Example

logger = logging.getLogger(__name__)

Turn = tuple[list[int], list[int]]  # token ids of a question and of its answer


class PackedRows:
    """Rows of examples, as datasets of row numbers and a collator that looks them up.

    Pixels stay out of Arrow, which would copy them at every step. Turns with boxes are tokenized again whenever the
    image is augmented.

    Raises:
        DataError: an example has several images, or a question is longer than the model's positions.
    """

    def __init__(self, examples: list[Example], model: Any, processor: Any, augment: AugmentConfig | None):
        self.examples, self.processor, self.augment = examples, processor, augment
        self.room = model.config.max_position_embeddings - model.config.image_tokens
        self.prompt = cache(partial(chat_prompt, processor, images=0))  # rendering is slow, and questions recur
        self.pack = PackedCollator(model.config.image_token_id, processor.image_tokens, 0)
        side = model.config.image_size
        self.pixels = np.empty((len(examples), 3, side, side), np.uint8)
        self.sizes: list[tuple[int, int]] = []
        for i, example in enumerate(examples):
            if len(example.images) != 1:
                raise DataError(
                    f"a conversation has {len(example.images)} images ({example.turns[0][0][:80]!r}), and this family "
                    "reads one; remove such rows, or fine-tune a family that reads several, such as idefics3"
                )
            image = decode(example.images[0])
            self.sizes.append(image.size)
            self.pixels[i] = resize_square(image, side)
        self.turns = self._tokenize_all()

    def dataset(self, rows: range, augment: bool) -> datasets.Dataset:
        """The rows of these numbers, for training with augmentation or for measuring the loss without."""
        count = len(rows)
        return datasets.Dataset.from_dict({"i": rows, "images": [[]] * count, "augment": [augment] * count})

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows of a dataset of this class."""
        rows = [item["i"] for item in batch]
        if self.augment is None or not batch[0]["augment"]:
            return self.pack([{"pixels": self.pixels[i], "turns": self.turns[i]} for i in rows])
        pixels, turns = self._augment(rows)
        return self.pack([{"pixels": pixels[i], "turns": turns[i]} for i in range(len(rows))])

    def _augment(self, rows: list[int]) -> tuple[np.ndarray, list[list[Turn]]]:
        assert self.augment is not None
        examples, sizes = [self.examples[i] for i in rows], [self.sizes[i] for i in rows]
        keep = bounding_boxes([[text for turn in example.turns for text in turn] for example in examples], sizes)
        is_text = torch.tensor(["ocr" in example.tasks for example in examples])
        pixels, views = augment_with_views(torch.from_numpy(self.pixels[rows]), self.augment, keep, is_text)
        turns: list[list[Turn]] = []
        for row, (i, example) in enumerate(zip(rows, examples, strict=True)):
            if keep[row].isnan().any():
                turns.append(self.turns[i])
                continue
            convert = partial(transcode_view, convention=self.processor.box_convention, size=sizes[row], views=views)
            moved = [[convert(text, row=row) for text in turn] for turn in example.turns]
            has_box = [any(CANONICAL.search(text) for text in turn) for turn in example.turns]
            fresh = iter(self._tokenize([turn for turn, boxed in zip(moved, has_box, strict=True) if boxed]))
            turns.append([next(fresh) if boxed else old for boxed, old in zip(has_box, self.turns[i], strict=True)])
        return pixels.numpy(), turns

    def _tokenize_all(self) -> list[list[Turn]]:
        """The turns of every example, without augmentation."""
        texts = [
            [transcode_view(text, self.processor.box_convention, size, None, 0) for text in turn]
            for example, size in zip(self.examples, self.sizes, strict=True)
            for turn in example.turns
        ]
        tokenized = iter(self._tokenize(texts, warn=True))
        return [[next(tokenized) for _ in example.turns] for example in self.examples]

    def _tokenize(self, turns: list[list[str]], warn: bool = False) -> list[Turn]:
        """Token ids of turns, with answers cut to the model's positions."""
        tokenizer = self.processor.tokenizer
        texts = [text for question, answer in turns for text in (self.prompt(question), answer + tokenizer.eos_token)]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        pairs = list(zip(ids[::2], ids[1::2], strict=True))
        remedy = "increase pretrain.model.max_position_embeddings, or reduce its image_size"
        if (worst := max((len(question) for question, _ in pairs), default=0)) >= self.room:
            raise DataError(
                f"a question has {worst} tokens, and beside the image's the model has {self.room} positions; {remedy}"
            )
        cut = sum(len(question) + len(answer) > self.room for question, answer in pairs)
        if cut and warn:
            message = "%d of %d turns are longer than the model's %d positions, and their answers are cut; %s"
            logger.warning(message, cut, len(pairs), self.room, remedy)
        return [(question, answer[: self.room - len(question)]) for question, answer in pairs]
