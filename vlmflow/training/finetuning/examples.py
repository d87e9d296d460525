"""The training examples of a fine-tuning stage: images with their turns, and a share of replay."""

import random
from dataclasses import dataclass

from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset
from vlmflow.errors import DataError
from vlmflow.inference.prompts import question_turns
from vlmflow.training.finetuning.config import FineTuneConfig


@dataclass
class Example:
    """The images of a conversation, of which there is usually one, and the (question, answer) turns about them.

    source: the same for examples of one pair or of one image, which must not be both trained on and held out.
    """

    images: tuple[bytes, ...]
    turns: list[tuple[str, str]]
    tasks: set[str]
    source: str = ""


def select_examples(data: Dataset, section: FineTuneConfig) -> list[Example]:
    """The training images that have a turn of the stage's task, and a random sample of the others as replay.

    Rows of one pair about the same image, byte for byte, become one example; so do rows without a pair, as those of
    ingested conversations. An image brings all its turns of `task` and of `also`. Replay makes up the share `replay` of
    the result, if there are enough other images.

    Raises:
        DataError: no training conversation of the stage's task.
    """
    by_image: dict[tuple[str, str], Example] = {}
    sources: dict[str, str] = {}  # of the pairs and of the images
    tasks = {section.task, *section.also}
    for row in data.rows():
        if row["split"] != "train" or row["task"] not in tasks:
            continue
        images = tuple(image["bytes"] for image in row["images"])
        pair, content = row["pair"], " ".join(map(dataset.uid, images))
        source = sources.setdefault(content, sources.get(pair) or pair or content)
        if pair:
            source = sources.setdefault(pair, source)
        example = by_image.setdefault((pair, content), Example(images, [], set(), source))
        example.turns += question_turns(row["messages"])
        example.tasks.add(row["task"])
    main = [example for example in by_image.values() if section.task in example.tasks]
    others = [example for example in by_image.values() if section.task not in example.tasks]
    if not main:
        raise DataError(
            f"{data.path}: no training conversation of task {section.task!r}; "
            "remove the section from the recipe, or map the columns of the data that hold the task"
        )
    rng = random.Random(section.training.seed)
    count = min(len(others), round(len(main) * section.replay / (1 - section.replay)))
    return main + rng.sample(others, count)


def hold_out(examples: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and about `share` of them to hold out, at least one; no source is in both.

    Which are held out depends on the source and the seed, not on the order of the rows.

    Raises:
        DataError: all examples have one source.
    """
    sources = {example.source for example in examples}
    if len(sources) < 2:
        raise DataError(f"early_stopping: {len(sources)} training image, of which none can be held out; remove it")
    count = min(len(sources) - 1, max(1, round(share * len(sources))))
    chosen = set(sorted(sources, key=lambda source: dataset.uid(f"{seed}/{source}".encode()))[:count])
    kept = [example for example in examples if example.source not in chosen]
    return kept, [example for example in examples if example.source in chosen]
