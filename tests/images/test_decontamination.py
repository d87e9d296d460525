"""Decontamination: what is evaluated on is not learned from, as a pair, a conversation or a preference."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.curate.test_curation import encoded, make_image, pair, run
from vlmflow.artifacts import dataset
from vlmflow.errors import DataError
from vlmflow.images.decontamination import find_leaks, load_evaluation_images


def again(image: bytes) -> bytes:
    """The picture in another size and file."""
    return encoded(Image.open(io.BytesIO(image)).resize((57, 57)), "JPEG", quality=80)


def evaluation(root: Path) -> tuple[str, list[bytes]]:
    """A dataset whose test split is evaluated on, and its pictures; its training split is not."""
    images = [encoded(make_image(seed)) for seed in range(200, 206)]
    rows = [pair(image, f"question {i}", split="test") for i, image in enumerate(images)]
    dataset.write(root / "evaluation", "pairs", [*rows, pair(encoded(make_image(300)), "to learn from")])
    return str(root / "evaluation"), images


def test_pairs_with_an_evaluation_image_are_dropped(tmp_path: Path) -> None:
    path, images = evaluation(tmp_path)
    rows = [pair(again(image), f"leak {i}", source="in_evaluation_set") for i, image in enumerate(images)]
    rows += [pair(encoded(make_image(seed)), f"clean {seed}", source="") for seed in (*range(20), 300)]
    rows.append(pair(again(images[0]), "of our own test split", split="test", source=""))
    rows.append(pair(b"no picture", "a damaged file", source="undecodable"))
    _, ledger, summary = run(tmp_path, rows, decontaminate=[path])
    assert [entry["rule"] for entry in ledger] == [row["source"] for row in rows]
    assert summary["dropped"]["in_evaluation_set"] == len(images)
    for entry in ledger[: len(images)]:
        assert entry["value"] <= entry["threshold"] == 16 and entry["detail"].startswith(path)
    assert run(tmp_path / "off", rows)[2]["dropped"]["in_evaluation_set"] == 0


def test_a_pair_of_the_evaluation_set_is_dropped_for_any_image(tmp_path: Path) -> None:
    path, images = evaluation(tmp_path)
    row = pair(images[0], "question 0")
    rows = [
        {**pair(encoded(make_image(1)), "another picture"), "uid": row["uid"]},
        pair(encoded(make_image(2)), "clean"),
    ]
    assert [entry["rule"] for entry in run(tmp_path, rows, decontaminate=[path])[1]] == ["in_evaluation_set", ""]


def conversation(uid: str, images: list[bytes], of: str = "", split: str = "train") -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is there?"}, {"role": "assistant", "content": "Patches."}]
    return {"uid": uid, "pair": of, "images": images, "messages": messages, "task": "vqa", "split": split}


def preference(uid: str, images: list[bytes], of: str = "", split: str = "train") -> dict[str, Any]:
    texts = {"prompt": "What is there?", "chosen": "Patches.", "rejected": "A cat.", "source": "human"}
    return {"uid": uid, "pair": of, "images": images, "split": split, **texts}


@pytest.mark.parametrize(("schema", "make"), [("conversations", conversation), ("preferences", preference)])
def test_conversations_and_preferences_are_checked(tmp_path: Path, schema: str, make: Any) -> None:
    path, images = evaluation(tmp_path)
    clean = encoded(make_image(7))
    rows = [
        make("seen", [again(images[2])]),
        make("second", [clean, images[3]]),
        make("of-a-pair", [clean], of=pair(images[1], "question 1")["uid"]),
        make("text-of-a-pair", [], of=pair(images[1], "question 1")["uid"]),
        make("clean", [clean]),
        make("text", []),
        make("damaged", [b"no picture"]),
        make("tested", [images[0]], split="test"),
    ]
    data = dataset.write(tmp_path / schema, schema, rows)
    found = {leak.uid: leak.evaluation_image for leak in find_leaks(data, load_evaluation_images((path,)))}
    assert set(found) == {"seen", "second", "of-a-pair", "text-of-a-pair"}
    assert found["seen"].endswith(pair(images[2], "question 2")["uid"]) and found["of-a-pair"].startswith("pair ")


def test_an_evaluation_set_may_be_a_folder_of_images_or_preferences(tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "deep"
    folder.mkdir(parents=True)
    image = encoded(make_image(9))
    (folder / "a.PNG").write_bytes(image)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture")
    held = load_evaluation_images((str(tmp_path / "pictures"),))
    assert held.names == [f"{tmp_path / 'pictures'} deep/a.PNG"]
    dataset.write(tmp_path / "asked", "preferences", [preference("p", [image], split="test")])
    data = dataset.write(tmp_path / "pairs", "pairs", [pair(again(image), "a leak"), pair(b"no", "damaged")])
    for path in (str(tmp_path / "pictures"), str(tmp_path / "asked")):
        assert [leak.uid for leak in find_leaks(data, load_evaluation_images((path,)))] == [
            pair(again(image), "a leak")["uid"]
        ]


def test_an_invalid_evaluation_set_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        load_evaluation_images((str(tmp_path / "nowhere"),))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no readable image"):
        load_evaluation_images((str(tmp_path / "empty"),))
