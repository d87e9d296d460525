"""The shuffled control: associations are destroyed, and the frequency of every part is kept."""

from collections import Counter

import numpy as np
import pytest

from vlmflow.training.pretraining.shuffled_control import shuffle_pairs

IMAGES = [np.full((3, 16, 16), i, np.uint8) for i in range(40)]
CAPTIONS = [f"word{i} and{i}" for i in range(40)]


def test_captions_are_permuted_across_pairs() -> None:
    rows = [{"pixels": p, "caption": c} for p, c in zip(IMAGES, CAPTIONS, strict=True)]
    shuffled = shuffle_pairs(rows, 8, seed=0)
    assert [row["pixels"][0, 0, 0] for row in shuffled] == list(range(40))
    assert sorted(row["caption"] for row in shuffled) == sorted(CAPTIONS)
    assert sum(row["caption"] == caption for row, caption in zip(shuffled, CAPTIONS, strict=True)) < 6
    assert [row["caption"] for row in shuffle_pairs(rows, 8, seed=0)] == [row["caption"] for row in shuffled]


def test_words_are_permuted_across_captions_when_rows_have_no_image() -> None:
    shuffled = shuffle_pairs([{"caption": caption} for caption in CAPTIONS], 8, seed=0)
    words = Counter(word for row in shuffled for word in row["caption"].split())
    assert words == Counter(" ".join(CAPTIONS).split()) and all(len(row["caption"].split()) == 2 for row in shuffled)
    assert sum(row["caption"] in CAPTIONS for row in shuffled) < 6


def test_patches_are_permuted_across_images_when_rows_have_no_caption() -> None:
    shuffled = shuffle_pairs([{"pixels": image} for image in IMAGES], 8, seed=0)
    corners = [[row["pixels"][0, y, x] for row in shuffled] for y in (0, 8) for x in (0, 8)]
    assert all(sorted(corner) == list(range(40)) for corner in corners), "each patch stays at its position"
    assert sum(len(set(patches)) == 4 for patches in zip(*corners, strict=True)) > 30
    patch = shuffled[3]["pixels"][:, :8, :8]
    assert (patch == patch[0, 0, 0]).all(), "patches are not split"
    assert IMAGES[5].min() == IMAGES[5].max() == 5, "the input rows are not modified"


@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_gives_another_permutation(seed: int) -> None:
    rows = [{"caption": caption} for caption in CAPTIONS]
    assert shuffle_pairs(rows, 8, seed) != shuffle_pairs(rows, 8, 0)
