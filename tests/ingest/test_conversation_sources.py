"""Conversations and preferences in the shapes that are around."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.ingest.conversation_formats import parse_conversation
from components.ingest.preference_formats import parse_preference
from components.validate.row_table import build_table
from tests.ingest.test_ingestion import encoded, folder, run
from vlmflow.errors import RecordError

ASKED, ANSWERED = "What is it?", "A cat."
TURNS = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
PARTS = [{"type": "text", "text": ASKED}]
URI = "data:image/png;base64," + base64.b64encode(encoded(seed=0)).decode()


def llava(value: str = f"<image>\n{ASKED}", answer: str = ANSWERED) -> list[dict[str, str]]:
    return [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]


def openai(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, *PARTS]}, {"role": "assistant", "content": ANSWERED}]


def written(root: Path, rows: list[dict[str, Any]]) -> Path:
    folder(root, [])
    (root / "index.jsonl").unlink()
    (root / "data.json").write_text(json.dumps(rows))
    return root


@pytest.mark.parametrize(
    "row",
    [
        {"id": "1", "image": "images/0.png", "conversations": llava()},
        {"id": "1", "image": ["images/0.png"], "conversations": llava(f"{ASKED}\n<image>")},
        {"image": "images/0.png", "conversation": [{"human": f"<image>{ASKED}", "assistant": ANSWERED}]},
        {"images": ["images/0.png"], "messages": TURNS},
        {"messages": openai({"type": "image_url", "image_url": {"url": URI}})},
        {"messages": openai({"type": "image", "image": "images/0.png"})},
        {"image": "images/0.png", "messages": openai({"type": "image"})},
    ],
)
def test_every_conversation_format_gives_the_same_row(tmp_path: Path, row: dict[str, Any]) -> None:
    made, rows, entries = run(written(tmp_path / "set", [row]), tmp_path / "out", source="conversations")
    assert entries == [] and made.card.schema == "conversations"
    assert [one["messages"] for one in rows] == [TURNS]
    assert [image["bytes"] for image in rows[0]["images"]] == [encoded(seed=0)]
    assert build_table(made, decode=None)[["image_fault", "messages_fault"]].isna().to_numpy().all()


def test_the_uid_of_a_conversation_is_its_content(tmp_path: Path) -> None:
    rows = [{"image": f"images/{i}.png", "conversations": llava()} for i in range(4)]
    rows += [{"messages": openai({"type": "image_url", "image_url": {"url": URI}})}]
    _, one, _ = run(written(tmp_path / "a", rows), tmp_path / "out-a", source="conversations")
    _, two, _ = run(written(tmp_path / "b", rows[::-1]), tmp_path / "out-b", source="conversations")
    assert [row["uid"] for row in one] == [row["uid"] for row in two][::-1]
    assert len({row["uid"] for row in one}) == 4 and one[0]["uid"] == one[4]["uid"]  # the same said of the same picture


def test_markers_of_several_images_are_kept(tmp_path: Path) -> None:
    row = {"image": ["images/0.png", "images/1.png"], "conversations": llava("<image> or <image>?")}
    made, rows, _ = run(written(tmp_path / "set", [row]), tmp_path / "out", source="conversations")
    assert rows[0]["messages"][0]["content"] == "<image> or <image>?" and len(rows[0]["images"]) == 2
    assert build_table(made, decode=None)["messages_fault"].isna().to_numpy().all()


def test_invalid_conversations_go_to_the_quarantine(tmp_path: Path) -> None:
    image = {"image": "images/0.png"}
    rows: list[Any] = [
        {**image, "conversations": llava()}, {"conversations": llava(ASKED)}, {**image, "conversations": llava()[:1]},
        {**image, "conversations": llava("<image><image>")}, {**image, "conversations": llava(answer=" ")},
        {"image": "gone.png", "conversations": llava()},
        {**image, "conversations": [{"from": "narrator", "value": "x"}]}, {**image, "text": "x"}, 7,
        {**image, "messages": openai({"type": "video"})}, {**image, "conversation": ["x"]},
        {"messages": openai({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%"}})},
    ]  # fmt: skip
    made, kept, entries = run(written(tmp_path / "set", rows), tmp_path / "out", source="conversations")
    assert len(kept) == 1 and made.card.notes["rows_read"] == len(rows)
    assert [entry["reason"].partition(":")[0] for entry in entries] == [
        "no image", "roles do not alternate", "image markers", "no text", "no such file", "malformed row",
        "malformed row",
        "malformed row", "malformed row", "malformed row", "damaged image",
    ]  # fmt: skip


def studio(*selected: str) -> dict[str, Any]:
    results = [
        {"type": "pairwise", "from_name": "pw", "to_name": "a,b", "value": {"selected": one}} for one in selected
    ]
    data = {"image": "/data/local-files/?d=images/0.png", "prompt": ASKED, "answer1": "A dog.", "answer2": ANSWERED}
    return {
        "id": 1,
        "data": data,
        "annotations": [{"id": 1, "was_cancelled": False, "result": [one]} for one in results],
    }


WORSE = {"question": ASKED, "chosen": ANSWERED, "rejected": "A dog."}
SPOKEN = {
    name: [{"role": "assistant", "content": [{"type": "text", "text": WORSE[name]}]}] for name in ("chosen", "rejected")
}


@pytest.mark.parametrize(
    ("row", "source"),
    [
        ({"images": ["images/0.png"], "prompt": ASKED, "chosen": ANSWERED, "rejected": "A dog."}, "model"),
        ({"images": ["images/0.png"], "prompt": openai({"type": "image"})[:1], **SPOKEN}, "model"),
        ({"image": "images/0.png", **{name: [TURNS[0], *SPOKEN[name]] for name in SPOKEN}}, "model"),
        ({"image": "images/0.png", "text": json.dumps(WORSE), "origin_dataset": "VQAv2"}, "model"),
        ({"image": "images/0.png", **WORSE, "source": "rule"}, "rule"),
        (studio("right"), "human"),
        (studio("left", "right", "right"), "human"),
    ],
)
def test_every_preference_format_gives_the_same_row(tmp_path: Path, row: dict[str, Any], source: str) -> None:
    made, rows, entries = run(
        written(tmp_path / "set", [row]), tmp_path / "out", source="preferences", preference_source="model"
    )
    assert entries == [] and made.card.schema == "preferences"
    assert [rows[0][name] for name in ("prompt", "chosen", "rejected", "source")] == [ASKED, ANSWERED, "A dog.", source]
    assert rows[0]["images"][0]["bytes"] == encoded(seed=0)
    assert build_table(made, decode=None)[["image_fault", "choice_fault"]].isna().to_numpy().all()


def test_invalid_preferences_go_to_the_quarantine(tmp_path: Path) -> None:
    image = {"image": "images/0.png"}
    rows = [
        {**image, **WORSE}, studio("left", "right"), studio(), {**image, **WORSE, "rejected": ANSWERED},
        {**image, **WORSE, "chosen": ""}, {**image, **SPOKEN, "prompt": [*TURNS, TURNS[0]]}, WORSE,
        {**image, "text": "{"}, {**studio("left"), "data": {"a": 1}},
    ]  # fmt: skip
    _, kept, entries = run(written(tmp_path / "set", rows), tmp_path / "out", source="preferences")
    assert len(kept) == 1
    assert [entry["reason"].partition(":")[0] for entry in entries] == [
        "no preference", "no preference", "no preference", "no text", "several turns", "no image",
        "malformed row", "malformed row",
    ]  # fmt: skip


def test_parquet_with_embedded_images(tmp_path: Path) -> None:
    table = pa.table({"images": [[{"bytes": encoded(seed=0), "path": None}]], "messages": [TURNS], "part": ["val"]})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    section = {"source": "conversations", "columns": {"split": "part"}}
    _, rows, _ = run(tmp_path / "set", tmp_path / "out", **section)
    assert [(row["split"], row["messages"]) for row in rows] == [("test", TURNS)]


IMAGE = {"image": "a.png"}
SVG = "Use <image> with an href."


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**IMAGE, "conversations": llava(answer=SVG)}, "image markers: <image> in a message that is not of the user"),
        ({**IMAGE, "conversations": llava(ASKED, SVG)}, "image markers: <image> in a message that is not of the user"),
        ({**IMAGE, "conversations": llava(), "messages": TURNS[:1]}, "two values, in messages and in conversations"),
        ({**IMAGE, "images": ["b.png"], "messages": TURNS}, "two values, in images and in image"),
        ({**IMAGE, "messages": openai({"type": "image", "image": "b.png"})}, "several images: in the column of images"),
        ({**IMAGE, "messages": [{**TURNS[0], "from": "gpt"}, TURNS[1]]}, "two values, in role and in from"),
        ({**IMAGE, "messages": [{**TURNS[0], "value": "x"}, TURNS[1]]}, "two values, in content and in value"),
        ({**IMAGE, "messages": [TURNS[0], {**TURNS[1], "content": 5}]}, "not text: 5"),
        ({**IMAGE, "messages": [TURNS[0], {**TURNS[1], "content": None}]}, "no text: message 2 is empty"),
        ({**IMAGE, "messages": '[{"role": "user"'}, "not JSON"),
        ({**IMAGE, "messages": "What is it?"}, "not a message"),
    ],
)
def test_conversations_that_would_have_to_be_changed_are_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_conversation(row)
    assert said in str(caught.value)


def test_conversations_are_kept_as_written() -> None:
    said = [{"role": "user", "content": " <image>What? "}, {"role": "assistant", "content": " A\n cat. "}]
    assert parse_conversation({**IMAGE, "messages": said}) == (
        ["a.png"], {"messages": [{"role": "user", "content": "What?"}, said[1]], "task": "vqa"},
    )  # fmt: skip
    only_marker = parse_conversation({**IMAGE, "conversations": llava("<image>")})[1]["messages"]
    assert only_marker == [{"role": "user", "content": ""}, TURNS[1]]
    capitals = [{"from": "USER", "value": ASKED, "role": None}, {"from": "Assistant", "value": ANSWERED}]
    for turns in (capitals, json.dumps(TURNS), json.dumps(llava()), [{**turn, "from": None} for turn in TURNS]):
        row = {"image": None, "images": ["a.png"], "messages": None, "conversations": turns}
        assert parse_conversation(row)[1]["messages"] == TURNS
    rounds = json.dumps([{"human": ASKED, "assistant": ANSWERED}])
    assert parse_conversation({**IMAGE, "conversation": rounds})[1]["messages"] == TURNS


def preference(chosen: Any, rejected: Any, prompt: Any = ASKED, **columns: Any) -> dict[str, Any]:
    return {**IMAGE, "prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}


USER, ANSWER, OTHER = TURNS[0], TURNS[1], {"role": "assistant", "content": "A dog."}
NEXT = {"role": "user", "content": "And now?"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (preference([{**ANSWER, "role": "user"}], [OTHER]), "chosen ends with a message of the user"),
        (preference([USER, ANSWER, NEXT], [USER, OTHER, NEXT], None), "several turns"),
        (preference([ANSWER], [OTHER, NEXT]), "rejected ends with a message of the user"),
        (preference([USER, ANSWER], [NEXT, OTHER], None), "rejected does not consist of the prompt and one answer"),
        (preference([NEXT, ANSWER], [NEXT, OTHER]), "chosen does not consist of the prompt and one answer"),
        (preference([ANSWER, NEXT, ANSWER], [OTHER]), "chosen does not consist of the prompt and one answer"),
        (preference(SVG, "A dog."), "image markers: <image> in the answer chosen"),
        (preference([ANSWER], [{**OTHER, "content": SVG}]), "image markers: <image> in a message that is not"),
        (preference("A", " A "), "no preference"),
        (preference("A", 5), "not text: 5"),
        (preference("A", None), "no text: rejected is empty"),
        (preference("A", []), "not text"),
        (preference("A", "B", question="Another?"), "two values, in prompt and in question"),
        ({**IMAGE, "text": '{"question": "a", "question": "b"}'}, "'question' occurs twice"),
    ],
)
def test_preferences_whose_roles_or_texts_are_not_clear_are_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_preference(row)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        preference([USER, ANSWER], [USER, OTHER]), preference([ANSWER], [OTHER], [USER]),
        preference(json.dumps([USER, ANSWER]), json.dumps([USER, OTHER]), None),
    ],
)  # fmt: skip
def test_answers_may_repeat_the_prompt(row: dict[str, Any]) -> None:
    expected = {"prompt": ASKED, "chosen": ANSWERED, "rejected": "A dog."}
    assert parse_preference(row) == (["a.png"], expected)


def test_parsers_raise_only_record_errors() -> None:
    strange: list[Any] = [None, 3, "x", [], {}, [[]], {"a": 1}, [None], [{"role": []}], {"content": {}}, float("nan")]
    names = ("messages", "conversations", "conversation", "prompt", "chosen", "text", "image", "data", "annotations")
    for parse in (parse_conversation, parse_preference):
        for name in names:
            for value in strange:
                with pytest.raises(RecordError):
                    parse({name: value, "annotations" if name == "data" else "data": value})
