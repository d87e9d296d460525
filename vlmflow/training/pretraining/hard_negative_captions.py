"""Hard negative captions: two words swapped, or one word replaced by another.

Words are interchangeable if the training captions have them between the same two neighbours. So "red" and "blue" are
swapped and "red" and "circle" are not, without a part-of-speech tagger of some language.

Source: Yuksekgonul et al. 2022, section 4 (which swaps by part of speech).
"""

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations

import torch

from vlmflow.errors import DataError

Context = tuple[str, str]  # the words before and after; "" at either end


class HardNegativeCaptions:
    """Hard negatives of a caption, with interchangeable words as in the training captions.

    Args:
        captions: the captions of the training pairs.

    Raises:
        DataError: the captions have fewer than two different words.
    """

    def __init__(self, captions: Iterable[str]):
        self.fillers: dict[Context, set[str]] = defaultdict(set)
        for caption in set(captions):
            for context, word in _contexts(caption.split()):
                self.fillers[context].add(word)
        self.words = sorted(set().union(*self.fillers.values()))
        if len(self.words) < 2:
            raise DataError(
                f"pretrain.negatives: the captions have only the words {self.words}; "
                "use captions with at least two different words, or set negatives to 0"
            )
        self.cache: dict[str, tuple[list[str], list[str]]] = {}

    def sample(self, caption: str, count: int) -> list[str]:
        """Draw `count` captions that differ from `caption`: swaps first, then replacements, repeated if too few.

        The draws come from torch's generator.
        """
        if caption not in self.cache:
            self.cache[caption] = self.near_misses(caption)
        swapped, replaced = self.cache[caption]
        negatives = _sample(swapped, count)
        negatives += _sample(replaced, count - len(negatives))
        if not negatives:  # no interchangeable words: replace any word by any other
            words = caption.split() or [""]
            position = int(torch.randint(len(words), ()))
            others = [word for word in self.words if word != words[position]]
            negatives = [
                " ".join([*words[:position], others[int(torch.randint(len(others), ()))], *words[position + 1 :]])
            ]
        return (negatives * count)[:count]

    def near_misses(self, caption: str) -> tuple[list[str], list[str]]:
        """All swaps and all replacements, as captions."""
        words = caption.split()
        contexts = _contexts(words)
        swapped, replaced = [], []
        for (i, (here, one)), (j, (there, other)) in combinations(enumerate(contexts), 2):
            if j > i + 1 and one != other and other in self.fillers[here] and one in self.fillers[there]:
                swapped.append([*words[:i], other, *words[i + 1 : j], one, *words[j + 1 :]])
        for i, (here, one) in enumerate(contexts):
            replaced += [[*words[:i], other, *words[i + 1 :]] for other in sorted(self.fillers[here] - {one})]
        return [" ".join(w) for w in swapped], [" ".join(w) for w in replaced]


def _contexts(words: list[str]) -> list[tuple[Context, str]]:
    """Every word with its context."""
    return list(zip(zip(["", *words[:-1]], [*words[1:], ""], strict=True), words, strict=True))


def _sample(texts: list[str], count: int) -> list[str]:
    return [texts[i] for i in torch.randperm(len(texts))[:count].tolist()]
