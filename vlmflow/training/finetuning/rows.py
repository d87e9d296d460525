"""Training rows: packed, with all turns about an image in one sequence, or in TRL's format, with one turn each."""

from functools import cache, partial
from typing import Any

import datasets
import numpy as np

from models.tiny.packing import PackedCollator
from vlmflow.images.boxes import transcode
from vlmflow.images.decoding import decode, resize_square
from vlmflow.inference.generation import chat_prompt
from vlmflow.training.finetuning.examples import Example

MESSAGES = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
TRL_FEATURES = datasets.Features(
    {"images": datasets.List(datasets.Image()), "prompt": MESSAGES, "completion": MESSAGES}
)


def pack_turns(examples: list[Example], model: Any, processor: Any) -> list[dict[str, Any]]:
    """One row for each image: `pixels` (3, H, W) uint8 and `turns`, pairs of question and answer token ids."""
    side, tokenizer = model.config.image_size, processor.tokenizer
    max_tokens = model.config.max_position_embeddings - model.config.image_tokens
    pixels = np.empty((len(examples), 3, side, side), np.uint8)
    texts: list[str] = []
    prompt = cache(partial(chat_prompt, processor, images=0))  # rendering a template is slow, and questions recur
    for i, example in enumerate(examples):
        image = decode(example.image)
        pixels[i] = resize_square(image, side)
        for question, answer in _transcode_turns(example, processor.box_convention, image.size):
            texts += [prompt(question), answer + tokenizer.eos_token]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    rows = []
    for i, example in enumerate(examples):
        turns = [(next(ids), next(ids)) for _ in example.turns]
        turns = [(question, answer[: max_tokens - len(question)]) for question, answer in turns]
        rows.append({"pixels": pixels[i], "turns": turns})
    return rows


class RowLookup:
    """A collator of row numbers: pixels stay out of Arrow, which would copy them at every step."""

    def __init__(self, rows: list[dict[str, Any]], collator: PackedCollator):
        self.rows, self.collator = rows, collator

    def __call__(self, batch: list[dict[str, Any]]) -> Any:
        return self.collator([self.rows[item["i"]] for item in batch])


def to_trl_rows(examples: list[Example], processor: Any) -> list[dict[str, Any]]:
    """One row for each turn, in TRL's conversational format of prompt and completion."""
    convention = getattr(processor, "box_convention", "pixels")
    return [
        {
            "images": [{"bytes": example.image, "path": None}],
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for example in examples
        for question, answer in _transcode_turns(example, convention, decode(example.image).size)
    ]


def _transcode_turns(example: Example, convention: str, size: tuple[int, int]) -> list[tuple[str, str]]:
    """The turns, with boxes as the model writes them."""
    return [
        (transcode(question, convention, *size), transcode(answer, convention, *size))
        for question, answer in example.turns
    ]
