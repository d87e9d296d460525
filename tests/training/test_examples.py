"""Fine-tuning examples: which turns are asked about which image."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset
from vlmflow.errors import DataError
from vlmflow.images.decoding import decode
from vlmflow.training.finetuning.config import FineTuneConfig
from vlmflow.training.finetuning.examples import Example, hold_out, select_examples


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 255 - level)).save(buffer, "PNG")
    return buffer.getvalue()


def row(uid: str, images: list[bytes], *turns: str, pair: str = "", task: str = "vqa", system: str = "") -> dict:
    contents = [text for turn in turns for text in (f"{turn}?", turn)]
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return {"uid": uid, "pair": pair, "images": images, "messages": messages, "task": task, "split": "train"}


def select(folder: Path, rows: list[dict], **section: Any) -> list[Example]:
    dataset.write(folder, "conversations", rows)
    return select_examples(Dataset(folder), FineTuneConfig(**{"task": "vqa", **section}))


def test_each_image_of_ingested_conversations_is_an_example_with_its_own_pixels(tmp_path: Path) -> None:
    rows = [row(f"{i}", [png(i)], f"level {i}") for i in range(40)] + [row("again", [png(3)], "bluish")]
    examples = select(tmp_path, rows)
    assert len(examples) == 40
    for i, example in enumerate(examples):
        assert np.asarray(decode(example.images[0]))[0, 0].tolist() == [i, 0, 255 - i]
        assert [answer for _, answer in example.turns] == [f"level {i}"] + ["bluish"] * (i == 3)


def test_a_conversation_keeps_all_its_images(tmp_path: Path) -> None:
    one, other = png(0), png(1)
    rows = [row("a", [one, other], "both"), row("b", [one], "first"), row("c", [other, one], "swapped")]
    assert [example.images for example in select(tmp_path, rows)] == [(one, other), (one,), (other, one)]


def test_a_system_message_precedes_each_question(tmp_path: Path) -> None:
    (example,) = select(tmp_path, [row("a", [png(0)], "one", "two", system="Be brief.")])
    assert example.turns == [("Be brief.\none?", "one"), ("Be brief.\ntwo?", "two")]


@pytest.mark.parametrize(
    ("pairs", "images", "same"),
    [
        (("p", "p"), (0, 1), True),  # a picture and a line of its text
        (("p", "q"), (0, 0), True),  # two captions of a picture
        (("", ""), (0, 0), True),
        (("p", "q"), (0, 1), False),
        (("", ""), (0, 1), False),
    ],
)
def test_examples_of_one_pair_or_image_have_one_source(
    tmp_path: Path, pairs: tuple[str, str], images: tuple[int, int], same: bool
) -> None:
    rows = [
        row(str(i), [png(image)], str(i), pair=pair, task=("vqa", "ocr")[i])
        for i, (pair, image) in enumerate(zip(pairs, images, strict=True))
    ]
    examples = select(tmp_path, rows, also=("ocr",), replay=0.5)
    assert (len({example.source for example in examples}) == 1) == same


def test_held_out_examples_share_no_source_with_the_others(tmp_path: Path) -> None:
    examples = [Example((b"",), [], set(), source=str(i % 20)) for i in range(60)]
    train, held_out = hold_out(examples, 0.1, seed=0)
    assert len(held_out) == 6 and len(train) == 54
    assert not {example.source for example in train} & {example.source for example in held_out}
    shuffled, _ = hold_out(examples[::-1], 0.1, seed=0)
    assert {e.source for e in shuffled} == {e.source for e in train}
    assert [len(part) for part in hold_out(examples[:2], 0.1, seed=0)] == [1, 1], "at least one of each"
    with pytest.raises(DataError, match="early_stopping: 1 training image"):
        hold_out(examples[:1], 0.1, seed=0)
