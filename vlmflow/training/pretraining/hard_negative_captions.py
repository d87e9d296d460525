"""Captions that are nearly right: the same words with two exchanged, or another word in one's place.

Which words are of a kind is learned from the captions themselves: those that stand between the same neighbours. So
"red" and "blue" change places, "red" and "circle" do not, and no tagger of one language is needed.

Source: Yuksekgonul et al. 2022, section 4 (which swaps by part of speech).
"""

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations

import torch

from vlmflow.errors import DataError

Place = tuple[str, str]  # the words before and after; "" at either end


class Negatives:
    """Near misses of a caption, by what the training captions say of words.

    Args:
        captions: those of the training pairs.

    Raises:
        DataError: all of them have the same words.
    """

    def __init__(self, captions: Iterable[str]):
        self.between: dict[Place, set[str]] = defaultdict(set)
        for caption in set(captions):
            for place, word in _places(caption.split()):
                self.between[place].add(word)
        self.words = sorted(set().union(*self.between.values()))
        if len(self.words) < 2:
            raise DataError(f"pretrain.negatives: captions of the one word {self.words} leave nothing to exchange")
        self.found: dict[str, tuple[list[str], list[str]]] = {}

    def draw(self, caption: str, count: int) -> list[str]:
        """`count` captions, none equal to `caption`, by torch's generator; exchanges first, repeated where few."""
        if caption not in self.found:
            self.found[caption] = self.near_misses(caption)
        swapped, replaced = self.found[caption]
        found = _sample(swapped, count)
        found += _sample(replaced, count - len(found))
        if not found:  # no word has its like: any other word in any place says something else
            words = caption.split() or [""]
            place = int(torch.randint(len(words), ()))
            others = [word for word in self.words if word != words[place]]
            found = [" ".join([*words[:place], others[int(torch.randint(len(others), ()))], *words[place + 1 :]])]
        return (found * count)[:count]

    def near_misses(self, caption: str) -> tuple[list[str], list[str]]:
        """All exchanges and all replacements."""
        words = caption.split()
        places = _places(words)
        swapped, replaced = [], []
        for (i, (here, one)), (j, (there, other)) in combinations(enumerate(places), 2):
            if j > i + 1 and one != other and other in self.between[here] and one in self.between[there]:
                swapped.append([*words[:i], other, *words[i + 1 : j], one, *words[j + 1 :]])
        for i, (here, one) in enumerate(places):
            replaced += [[*words[:i], other, *words[i + 1 :]] for other in sorted(self.between[here] - {one})]
        return [" ".join(w) for w in swapped], [" ".join(w) for w in replaced]


def _places(words: list[str]) -> list[tuple[Place, str]]:
    """Every word with where it stands."""
    return list(zip(zip(["", *words[:-1]], [*words[1:], ""], strict=True), words, strict=True))


def _sample(texts: list[str], count: int) -> list[str]:
    return [texts[i] for i in torch.randperm(len(texts))[:count].tolist()]
