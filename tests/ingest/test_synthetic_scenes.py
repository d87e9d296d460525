"""The generated scenes: the same for a seed, true to their own annotations, and test apart from training."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from components.ingest.config import ScenesConfig
from components.ingest.synthetic_scenes import COLOURS, SHAPES, generate
from vlmflow.evaluation import objects
from vlmflow.images.boxes import Box

SCENES = ScenesConfig(web=300, boxes=120, signs=30, test=30)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(generate(SCENES, seed=3))


def test_the_same_seed_gives_the_same_rows(rows: list[dict]) -> None:
    assert [r["uid"] for r in generate(SCENES, seed=3)] == [r["uid"] for r in rows]
    assert [r["uid"] for r in generate(SCENES, seed=4)] != [r["uid"] for r in rows]


def test_the_number_of_chunks_does_not_change_the_rows() -> None:
    """Rows come in order from several processes, and a kind's first chunk does not depend on how many follow."""
    many = [r["uid"] for r in generate(ScenesConfig(web=0, boxes=7001, signs=0, test=0), seed=1)]
    few = [r["uid"] for r in generate(ScenesConfig(web=0, boxes=1000, signs=0, test=0), seed=1)]
    assert many[:1000] == few and len(many) == 7001


def test_the_noise_has_the_configured_fractions(rows: list[dict]) -> None:
    kinds = Counter(r["source"].split("/")[-1] for r in rows if "/web/" in r["source"])
    assert sum(kinds.values()) == 300
    assert 60 <= kinds["shuffled"] <= 120 and kinds["clean"] > 90


def test_a_phrase_refers_to_one_object_of_its_image(rows: list[dict]) -> None:
    for row in rows:
        phrases = [region["phrase"] for region in row["regions"]]
        assert len(set(phrases)) == len(phrases), phrases
        for region in row["regions"]:
            assert 0 <= region["x0"] < region["x1"] <= row["width"]
            assert 0 <= region["y0"] < region["y1"] <= row["height"]


def test_coloured_squares_are_at_their_boxes(rows: list[dict]) -> None:
    checked = 0
    for row in rows:
        picture: np.ndarray | None = None
        for region in row["regions"]:
            words = region["phrase"].split()
            if words[-1] == "square" and region["category"] == "square":
                picture = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"), int)
                x0, y0, x1, y1 = (int(region[corner]) for corner in ("x0", "y0", "x1", "y1"))
                inner = picture[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
                assert np.abs(inner.mean((0, 1)) - COLOURS[words[-2]]).max() < 25, region
                checked += 1
    assert checked > 10


def test_objects_do_not_overlap(rows: list[dict]) -> None:
    for row in rows:
        boxes = [Box(r["x0"], r["y0"], r["x1"], r["y1"], 64, 64) for r in row["regions"]]
        assert all(a.iou(b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])


def test_no_string_and_no_image_is_in_both_splits(rows: list[dict]) -> None:
    train, test = ([r for r in rows if r["split"] == split] for split in ("train", "test"))
    strings = [{line["text"] for r in part for line in r["lines"]} for part in (train, test)]
    assert strings[0] and strings[1] and not strings[0] & strings[1]
    assert not {r["image"] for r in train} & {r["image"] for r in test}
    captions = [r["caption"] for r in rows if r["source"] == "scenes/test/scene"]
    assert len(set(captions)) == len(captions) == 30


def test_lists_of_objects_round_trip() -> None:
    vocabulary = [*SHAPES, "digit", "word"]
    for seed in range(50):
        drawn = np.random.default_rng(seed).choice(vocabulary, size=seed % 5 + 1).tolist()
        assert objects.parse(objects.list_objects(drawn), vocabulary) == Counter(drawn)
    assert objects.list_objects(["cross", "cross", "orange"]) == "two crosses and an orange"
    assert objects.parse("nothing of the kind", vocabulary) == Counter()
    assert objects.parse("Three circles.", ["circle"]) == Counter(circle=3)
