"""Hard negatives: near-miss captions, and batches of similar captions."""

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


def test_near_misses_swap_or_replace_words_of_one_kind() -> None:
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


def test_negatives_have_the_requested_number_and_never_equal_the_caption() -> None:
    negatives = HardNegativeCaptions([*CAPTIONS, "two green crosses", "nothing"])
    torch.manual_seed(0)
    for caption in (
        *CAPTIONS[::7],
        "two green crosses",
        "nothing",
        "unheard words",
        "a red circle left of a red circle",
    ):
        sampled = negatives.sample(caption, 3)
        assert len(sampled) == 3 and caption not in sampled, caption
        assert all(len(text.split()) == len(caption.split()) for text in sampled)
    assert len(set(negatives.sample(CAPTIONS[5], 4))) == 4


def test_negatives_depend_on_the_seed_only() -> None:
    negatives, sampled = HardNegativeCaptions(CAPTIONS), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        sampled.append([negatives.sample(caption, 2) for caption in CAPTIONS[:50]])
    assert sampled[0] == sampled[1] != sampled[2]


def test_captions_without_exchangeable_words_are_rejected() -> None:
    with pytest.raises(DataError, match="negatives"):
        HardNegativeCaptions(["circle", "circle circle"])


def test_similar_captions_share_a_batch_and_equal_captions_do_not_share_a_group() -> None:
    captions = [CAPTIONS[i] for i in np.random.default_rng(0).integers(0, len(CAPTIONS), 800)]
    vectors = TfidfVectorizer(token_pattern=r"\S+").fit_transform(captions)
    cosines = np.asarray((vectors @ vectors.T).todense())

    def mean_similarity(order: list[int], size: int) -> float:
        batches = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        return float(np.mean([np.sort(cosines[np.ix_(b, b)], axis=1)[:, -4:-1].mean() for b in batches]))

    random = list(np.random.default_rng(1).permutation(800))
    half, whole = (list(HardNegativeSampler(captions, 32, share, seed=0)) for share in (0.5, 1.0))
    assert sorted(half) == sorted(whole) == list(range(800)), "each row exactly once"
    assert mean_similarity(random, 32) + 0.02 < mean_similarity(half, 32) < mean_similarity(whole, 32) - 0.02
    first = whole[:GROUP]
    assert len({captions[i] for i in first}) == GROUP
    others = [j for j in np.argsort(-cosines[first[0]]) if captions[j] != captions[first[0]]]
    ranked = list(dict.fromkeys(captions[j] for j in others))
    least = cosines[first[0], captions.index(ranked[GROUP - 2])]
    assert all(cosines[first[0], i] >= least - 1e-9 for i in first[1:]), "the nearest captions"


def test_the_order_is_equal_in_every_process_and_changes_with_the_epoch() -> None:
    one, other = (HardNegativeSampler(CAPTIONS, 16, 0.5, seed=3) for _ in range(2))
    assert list(one) == list(other) == list(one)
    other.set_epoch(1)
    assert list(one) != list(other)
    assert Counter(list(other)) == Counter(range(len(CAPTIONS)))
