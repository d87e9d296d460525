"""Supervised fine-tuning on conversations, in one process or as one of several.

TRL's SFTTrainer trains every family. The sketch family's rows are packed (all turns of a picture behind
one copy of it); other families go TRL's own way, one turn a row.
"""

import random
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import Trainer, set_seed
from trl import SFTConfig, SFTTrainer

from models.tiny.packing import PackedCollator
from models.zoo import ZOO
from vlmflow.artifacts import checkpoint
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes as recipes
from vlmflow.errors import DataError
from vlmflow.images.boxes import transcode
from vlmflow.images.decoding import decode, square
from vlmflow.inference.loading import chat_prompt, load
from vlmflow.runtime.code_hash import code_hash
from vlmflow.training.arguments import Progress, trainer_arguments
from vlmflow.training.checkpointing import open_checkpoints
from vlmflow.training.finetuning.config import FineTuneConfig
from vlmflow.training.fsdp import gather_state_dict, prepare_trainer


@dataclass
class Example:
    """One picture and its turns."""

    image: bytes
    turns: list[tuple[str, str]]
    tasks: set[str]


def examples(data: Dataset, section: FineTuneConfig) -> list[Example]:
    """The training pictures of the stage's tasks with all their turns, replay mixed in to its share."""
    by_picture: dict[str, Example] = {}
    wanted = {section.task, *section.also}
    for row in data.rows():
        if row["split"] != "train" or row["task"] not in wanted:
            continue
        # Crops of a picture are pictures of their own.
        key = row["uid"] if row["task"] == "ocr" else row["pair"]
        example = by_picture.setdefault(key, Example(row["images"][0]["bytes"], [], set()))
        contents = [message["content"] for message in row["messages"]]
        turns = list(zip(contents[::2], contents[1::2], strict=True))
        example.turns += turns
        example.tasks.add(row["task"])
    main = [e for e in by_picture.values() if section.task in e.tasks]
    rest = [e for e in by_picture.values() if section.task not in e.tasks]
    if not main:
        raise DataError(
            f"{data.path}: no training conversation of task {section.task!r}; "
            f"leave the section out of the recipe, or map the data's columns for it"
        )
    rng = random.Random(section.training.seed)
    count = min(len(rest), round(len(main) * section.replay / (1 - section.replay)))
    return main + rng.sample(rest, count)


def train(model_in: Path, conversations: Path, section: FineTuneConfig, step: str, out: Path) -> None:
    """Fine-tune on the conversations' training split; `spread` calls it in each process."""
    data = Dataset(conversations, "conversations")
    fit(model_in, examples(data, section), out, section, step=step, data=data)


def fit(model_in: Path, chosen: list[Example], out: Path, section: FineTuneConfig, *, step: str, data: Dataset) -> None:
    """Fine-tune on `chosen` in this process (or this member of the process group); process 0 writes `out`."""
    training = section.training
    set_seed(training.seed)
    model, processor, family = _start(model_in, section, step)
    sketch = model.config.model_type == "sketch"
    rows = _packed(chosen, model, processor) if sketch else _turns(chosen, processor)
    progress = Progress()
    parent = Checkpoint(model_in).hash
    what = {"parent": parent, "data": data.hash, "section": section.model_dump(), "code": code_hash(__name__)}
    with open_checkpoints(training, step=step, **what) as kept:
        options = trainer_arguments(training, kept.folder, max_length=None, activation_checkpointing=False)
        if sketch:
            options["ddp_find_unused_parameters"] = False  # every parameter that learns has a part in every batch
            collator = _Lookup(rows, PackedCollator(model.config.image_token_id, processor.image_tokens, 0))
            numbers = datasets.Dataset.from_dict({"i": range(len(rows)), "images": [[]] * len(rows)})
            kind: Any = {"train_dataset": numbers, "data_collator": collator}
        else:
            kind = {"train_dataset": datasets.Dataset.from_list(rows, features=TRL_ROWS)}
        trainer = (_TurnTrainer if sketch else SFTTrainer)(
            model=model,
            args=SFTConfig(**options),
            processing_class=processor,
            callbacks=[progress, *kept.callbacks],
            **kind,
        )
        kept.train(prepare_trainer(trainer, training))
        whole = gather_state_dict(trainer)
        if trainer.is_world_process_zero():
            checkpoint.save(
                out,
                trainer.accelerator.unwrap_model(trainer.model),
                processor,
                weights=whole,
                family=family,
                step=step,
                recipe=section.model_dump(),
                parent=parent,
                datasets=[data.hash],
                curve=progress.curve,
                notes={"pictures": len(chosen), "turns": sum(len(e.turns) for e in chosen)},
            )


def _start(model_in: Path, section: FineTuneConfig, step: str) -> tuple[Any, Any, str]:
    loaded = load(model_in)
    family = loaded.card.get("family", "")
    if section.family and section.family != family:
        given, where = (loaded.model, loaded.processor), f"{step}.model"
        model, processor = recipes.call(ZOO[section.family].grow, *given, values=section.model, where=where)
        return model, processor, section.family
    return loaded.model.train(), loaded.processor, family


class _TurnTrainer(SFTTrainer):
    """SFTTrainer with the model's own loss.

    TRL scores every position through its fused head on a CPU; ours scores the answers' tokens only.
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return Trainer.compute_loss(self, model, inputs, return_outputs=return_outputs)


class _Lookup:
    """Rows by number: pixels stay out of Arrow, where they would be copied at every step."""

    def __init__(self, rows: list[dict[str, Any]], collator: PackedCollator):
        self.rows, self.collator = rows, collator

    def __call__(self, batch: list[dict[str, Any]]) -> Any:
        return self.collator([self.rows[item["i"]] for item in batch])


def _packed(chosen: list[Example], model: Any, processor: Any) -> list[dict[str, Any]]:
    side, tokenizer = model.config.image_size, processor.tokenizer
    room = model.config.max_position_embeddings - model.config.image_tokens
    pixels = np.empty((len(chosen), 3, side, side), np.uint8)
    flat: list[str] = []
    prompt = cache(partial(chat_prompt, processor, pictures=0))  # a template takes its time, and questions recur
    for i, example in enumerate(chosen):
        picture = decode(example.image)
        size = picture.size
        pixels[i] = square(picture, side)
        for question, answer in example.turns:
            asked, said = (transcode(text, processor.box_convention, *size) for text in (question, answer))
            flat += [prompt(asked), said + tokenizer.eos_token]
    ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    rows = []
    for i, example in enumerate(chosen):
        turns = [(next(ids), next(ids)) for _ in example.turns]
        turns = [(question, answer[: room - len(question)]) for question, answer in turns]
        rows.append({"pixels": pixels[i], "turns": turns})
    return rows


TRL_ROWS = datasets.Features(
    {
        "images": datasets.List(datasets.Image()),
        "prompt": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        "completion": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
    }
)


def _turns(chosen: list[Example], processor: Any) -> list[dict[str, Any]]:
    convention = getattr(processor, "box_convention", "pixels")
    rows = []
    for example in chosen:
        size = decode(example.image).size
        for question, answer in example.turns:
            asked, said = (transcode(text, convention, *size) for text in (question, answer))
            rows.append(
                {
                    "images": [{"bytes": example.image, "path": None}],
                    "prompt": [{"role": "user", "content": asked}],
                    "completion": [{"role": "assistant", "content": said}],
                }
            )
    return rows
