"""Conversations built from the annotations of images have correct answers."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from components.instructions.config import InstructionConfig
from components.instructions.conversations import READ_LINE, build_conversations
from vlmflow.artifacts import dataset
from vlmflow.errors import DataError
from vlmflow.evaluation import objects
from vlmflow.images.boxes import CANONICAL
from vlmflow.inference.prompts import DESCRIBE_IMAGE, NAME_OBJECTS


def png(width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def pair(uid: str, caption: str = "", split: str = "train", **more: object) -> dict:
    row = {"uid": uid, "image": png(), "caption": caption, "width": 40, "height": 30, "source": "", "licence": "",
           "split": split, "label": "", "regions": [], "lines": []}  # fmt: skip
    return {**row, **more}


def region(phrase: str, category: str, x0: float = 1) -> dict:
    return {"phrase": phrase, "category": category, "x0": x0, "y0": 2, "x1": 20.5, "y1": 22}


def conversations(tmp_path: Path, *pairs: dict, **settings: Any) -> list[dict]:
    dataset.write(tmp_path / "pairs", "pairs", pairs)
    return list(build_conversations(tmp_path / "pairs", tmp_path / "out", InstructionConfig(**settings)).rows())


def turns(row: dict) -> list[tuple[str, str]]:
    contents = [message["content"] for message in row["messages"]]
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * (len(contents) // 2)
    return list(zip(contents[::2], contents[1::2], strict=True))


def test_each_kind_of_annotation_becomes_a_task(tmp_path: Path) -> None:
    regions = [region("red circle", "circle"), region("blue circle", "circle"), region("left star", "star")]
    line = {"text": "TOTAL", "x0": 5, "y0": 5, "x1": 35, "y1": 15}
    rows = conversations(
        tmp_path,
        pair("a", "a fine picture", regions=regions, lines=[line]),
        pair("b", "", "test", regions=[region("x", "cross")]),
    )
    by_task = {row["task"]: row for row in rows if row["pair"] == "a"}
    assert set(by_task) == {"caption", "objects", "ground", "vqa", "ocr"}
    assert turns(by_task["caption"]) == [(DESCRIBE_IMAGE, "a fine picture")]
    assert turns(by_task["objects"]) == [(NAME_OBJECTS, "two circles and a star")]
    assert ("Where is the left star?", "<box>1,2,20.5,22</box>") in turns(by_task["ground"])
    assert all(CANONICAL.fullmatch(answer) for _, answer in turns(by_task["ground"]))
    assert turns(by_task["ocr"]) == [(READ_LINE, "TOTAL")]
    crop = Image.open(io.BytesIO(by_task["ocr"]["images"][0]["bytes"]))
    assert crop.size == (30, 10), "a line keeps its aspect ratio"
    assert {row["split"] for row in rows if row["pair"] == "b"} == {"test"}


@pytest.mark.parametrize(
    ("regions", "asked"),
    [
        ([region("ace", "ace"), region("ace", "ace", 5)], []),
        ([region("ace", "ace"), region("Ace ", "ace", 5), region("king", "king")], ["king"]),
        ([region("left ace", "ace"), region("right ace", "ace", 5)], ["left ace", "right ace"]),
        ([region("ace", "ace"), region("right ace", "ace", 5)], ["right ace"]),  # "the ace" may be either
        ([region("ace", "ace"), region("ace", "ace")], ["ace"]),  # one object, listed twice
        ([region("", "ace")], ["ace"]),
    ],
)
def test_a_phrase_of_several_regions_is_not_asked(regions: list[dict], asked: list[str], tmp_path: Path) -> None:
    rows = conversations(tmp_path, pair("a", "a picture", regions=regions))
    questions = [question for row in rows if row["task"] == "ground" for question, _ in turns(row)]
    assert sorted(questions) == [f"Where is the {phrase}?" for phrase in sorted(asked)]


def test_labels_and_statements_become_questions(tmp_path: Path) -> None:
    labelled = pair("a", "a cat sits", label="cat")
    assert [row["task"] for row in conversations(tmp_path / "off", labelled)] == ["caption"]
    rows = conversations(tmp_path / "labels", labelled, labels=True)
    assert [(row["task"], *turns(row)) for row in rows][1] == ("classify", ("Classify the picture.", "cat"))
    statements = [pair("a", "A cat sits.", label="True"), pair("b", "A dog sits.", label="no"), pair("c", "A cat.")]
    rows = conversations(tmp_path / "statements", *statements, statements=True)
    assert [(row["task"], *turns(row)) for row in rows] == [
        ("statement", ("A cat sits. True or false?", "true")),
        ("statement", ("A dog sits. True or false?", "false")),
    ]
    with pytest.raises(DataError, match="the label 'maybe' is neither true nor false"):
        conversations(tmp_path / "maybe", pair("a", "A cat.", label="maybe"), statements=True)


def test_yes_and_no_answers_are_correct_and_balanced(tmp_path: Path) -> None:
    kinds = ["circle", "star", "cross"]
    pairs = [pair(str(i), regions=[region("it", kinds[i % 3])]) for i in range(60)]
    answers = [
        (question, answer, row["pair"])
        for row in conversations(tmp_path, *pairs, yes_no=2)
        if row["task"] == "vqa"
        for question, answer in turns(row)
    ]
    for question, answer, uid in answers:
        assert (kinds[int(uid) % 3] in question) == (answer == "yes")
    assert sum(answer == "yes" for _, answer, _ in answers) == 60 == len(answers) / 2
    first = [row for row in conversations(tmp_path / "one", *pairs, yes_no=1) if row["task"] == "vqa"]
    said = [turns(row)[0][1] for row in first]
    assert 10 < said.count("no") < 50, "with one question per image the answer must not always be yes"


def test_conversations_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    pairs = [pair(str(i), f"number {i}", regions=[region(f"p{j}", f"c{j}") for j in range(i % 4)]) for i in range(12)]
    one = {row["uid"] for row in conversations(tmp_path / "one", *pairs, regions=2)}
    two = {row["uid"] for row in conversations(tmp_path / "two", *reversed(pairs), regions=2)}
    assert one == two


def test_pairs_without_annotations_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pair has a caption, a region or a line"):
        conversations(tmp_path, pair("a"))


def test_objects_are_parsed_in_singular_and_plural() -> None:
    assert objects.parse("two glasses and a glass", ["glass"]) == {"glass": 3}
    assert objects.parse("a starfish", ["star"]) == {}
