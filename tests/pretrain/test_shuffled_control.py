"""The control: what belongs together is dealt at random, and every part is as frequent as before."""

from collections import Counter

import numpy as np
import pytest

from vlmflow.training.pretraining.shuffled_control import shuffle_pairs

PICTURES = [np.full((3, 16, 16), i, np.uint8) for i in range(40)]
CAPTIONS = [f"word{i} and{i}" for i in range(40)]


def test_pairs_get_other_captions() -> None:
    rows = [{"pixels": p, "caption": c} for p, c in zip(PICTURES, CAPTIONS, strict=True)]
    dealt = shuffle_pairs(rows, 8, seed=0)
    assert [row["pixels"][0, 0, 0] for row in dealt] == list(range(40))
    assert sorted(row["caption"] for row in dealt) == sorted(CAPTIONS)
    assert sum(row["caption"] == caption for row, caption in zip(dealt, CAPTIONS, strict=True)) < 6
    assert [row["caption"] for row in shuffle_pairs(rows, 8, seed=0)] == [row["caption"] for row in dealt]


def test_captions_alone_get_words_from_all_captions() -> None:
    dealt = shuffle_pairs([{"caption": caption} for caption in CAPTIONS], 8, seed=0)
    words = Counter(word for row in dealt for word in row["caption"].split())
    assert words == Counter(" ".join(CAPTIONS).split()) and all(len(row["caption"].split()) == 2 for row in dealt)
    assert sum(row["caption"] in CAPTIONS for row in dealt) < 6


def test_pictures_alone_get_patches_from_all_pictures() -> None:
    dealt = shuffle_pairs([{"pixels": picture} for picture in PICTURES], 8, seed=0)
    corners = [[row["pixels"][0, y, x] for row in dealt] for y in (0, 8) for x in (0, 8)]
    assert all(sorted(corner) == list(range(40)) for corner in corners), "each place keeps its patches"
    assert sum(len(set(patches)) == 4 for patches in zip(*corners, strict=True)) > 30
    patch = dealt[3]["pixels"][:, :8, :8]
    assert (patch == patch[0, 0, 0]).all(), "a patch stays whole"
    assert PICTURES[5].min() == PICTURES[5].max() == 5, "the rows that came in are as they were"


@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_deals_otherwise(seed: int) -> None:
    rows = [{"caption": caption} for caption in CAPTIONS]
    assert shuffle_pairs(rows, 8, seed) != shuffle_pairs(rows, 8, 0)
