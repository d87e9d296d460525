"""The training examples of a fine-tuning stage: images with their turns, and a share of replay."""

import random
from dataclasses import dataclass

from vlmflow.artifacts.dataset import Dataset
from vlmflow.errors import DataError
from vlmflow.training.finetuning.config import FineTuneConfig


@dataclass
class Example:
    """An image and the (question, answer) turns about it."""

    image: bytes
    turns: list[tuple[str, str]]
    tasks: set[str]


def select_examples(data: Dataset, section: FineTuneConfig) -> list[Example]:
    """The training images that have a turn of the stage's task, and a random sample of the others as replay.

    An image brings all its turns of `task` and of `also`. Replay makes up the share `replay` of the result, if there
    are enough other images.

    Raises:
        DataError: no training conversation of the stage's task.
    """
    by_image: dict[str, Example] = {}
    tasks = {section.task, *section.also}
    for row in data.rows():
        if row["split"] != "train" or row["task"] not in tasks:
            continue
        # An OCR row shows a crop of its pair's image: an image of its own.
        key = row["uid"] if row["task"] == "ocr" else row["pair"]
        example = by_image.setdefault(key, Example(row["images"][0]["bytes"], [], set()))
        contents = [message["content"] for message in row["messages"]]
        example.turns += zip(contents[::2], contents[1::2], strict=True)
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
