"""Captions that are nearly right, and batches whose captions are alike."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from vlmflow.errors import DataError
from vlmflow.training.pretraining.hard_negative_captions import HardNegativeCaptions
from vlmflow.training.pretraining.hard_negative_sampler import GROUP, HardNegativeSampler

COLOURS, SHAPES, SIDES = ("red", "blue", "green", "grey"), ("circle", "star", "cross"), ("left of", "right of", "above")
CAPTIONS = [
    f"a {one} {shape} {side} a {other} {second}"
    for one in COLOURS for shape in SHAPES for side in SIDES for other in COLOURS for second in SHAPES
]  # fmt: skip
KIND = {word: kind for kind, words in (("colour", COLOURS), ("shape", SHAPES)) for word in words}


def test_words_of_one_kind_change_places() -> None:
    swapped, replaced = HardNegativeCaptions(CAPTIONS).near_misses("a red circle left of a blue star")
    assert sorted(swapped) == ["a blue circle left of a red star", "a red star left of a blue circle"]
    assert "a red circle left of a blue cross" in replaced and "a red circle right of a blue star" in replaced
    assert not any("circle circle" in text or text.count("red") + text.count("blue") > 2 for text in replaced)
    for text in replaced:
        assert [KIND.get(word) for word in text.split()] == [
            None,
            "colour",
            "shape",
            None,
            None,
            None,
            "colour",
            "shape",
        ]


def test_negatives_are_never_the_caption_and_as_many_as_asked() -> None:
    negatives = HardNegativeCaptions([*CAPTIONS, "two green crosses", "nothing"])
    torch.manual_seed(0)
    for caption in (
        *CAPTIONS[::7],
        "two green crosses",
        "nothing",
        "unheard words",
        "a red circle left of a red circle",
    ):
        found = negatives.sample(caption, 3)
        assert len(found) == 3 and caption not in found, caption
        assert all(len(text.split()) == len(caption.split()) for text in found)
    assert len(set(negatives.sample(CAPTIONS[5], 4))) == 4


def test_negatives_by_a_seed() -> None:
    negatives, found = HardNegativeCaptions(CAPTIONS), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append([negatives.sample(caption, 2) for caption in CAPTIONS[:50]])
    assert found[0] == found[1] != found[2]


def test_nothing_to_exchange() -> None:
    with pytest.raises(DataError, match="negatives"):
        HardNegativeCaptions(["circle", "circle circle"])


def test_alike_captions_share_a_batch_and_equal_ones_do_not_share_a_group() -> None:
    captions = [CAPTIONS[i] for i in np.random.default_rng(0).integers(0, len(CAPTIONS), 800)]
    vectors = TfidfVectorizer(token_pattern=r"\S+").fit_transform(captions)
    cosines = np.asarray((vectors @ vectors.T).todense())

    def likeness(order: list[int], size: int) -> float:
        batches = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        return float(np.mean([np.sort(cosines[np.ix_(b, b)], axis=1)[:, -4:-1].mean() for b in batches]))

    random = list(np.random.default_rng(1).permutation(800))
    half, whole = (list(HardNegativeSampler(captions, 32, share, seed=0)) for share in (0.5, 1.0))
    assert sorted(half) == sorted(whole) == list(range(800)), "every row once"
    assert likeness(random, 32) + 0.02 < likeness(half, 32) < likeness(whole, 32) - 0.02
    first = whole[:GROUP]
    assert len({captions[i] for i in first}) == GROUP
    free = [j for j in np.argsort(-cosines[first[0]]) if captions[j] != captions[first[0]]]
    slowly = list(dict.fromkeys(captions[j] for j in free))
    least = cosines[first[0], captions.index(slowly[GROUP - 2])]
    assert all(cosines[first[0], i] >= least - 1e-9 for i in first[1:]), "the nearest there are"


def test_an_epoch_is_the_same_in_every_process_and_another_one_is_not() -> None:
    one, other = (HardNegativeSampler(CAPTIONS, 16, 0.5, seed=3) for _ in range(2))
    assert list(one) == list(other) == list(one)
    other.set_epoch(1)
    assert list(one) != list(other)
    assert Counter(list(other)) == Counter(range(len(CAPTIONS)))
