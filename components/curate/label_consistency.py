"""Agreement: what a caption names, an encoder that knows the names should see.

The hook for a filter by classifier: the encoder classifies the picture among named classes, zero-shot, and a
caption that names one of them must name one that the encoder holds for likely.
"""

from dataclasses import dataclass

import numpy as np

from components.curate import balance, caption_rules
from vlmflow.evaluation import objects


@dataclass(frozen=True, kw_only=True)
class LabelConsistencyConfig:
    """`classes` are words or phrases, none for no check; a caption's class must be among the `top` likeliest."""

    classes: tuple[str, ...] = ()
    top: int = 1

    def __post_init__(self) -> None:
        if len(self.classes) == 1:
            raise ValueError(f"classes {self.classes[0]!r}: a classifier needs at least two")
        if self.classes and not 1 <= self.top < len(self.classes):
            raise ValueError(f"top must be from 1 to below the {len(self.classes)} classes, got {self.top}")


def named(caption: str, classes: tuple[str, ...]) -> list[int]:
    """The places of the classes that the caption names, as whole words, also in the plural."""
    forms = {
        caption_rules.normalised(form): place
        for place, name in enumerate(classes)
        for form in (name, objects.plural(name))
    }
    return sorted({forms[form] for form in balance.matches(caption, frozenset(forms))})


def rank(similarities: np.ndarray, mentioned: list[int]) -> int:
    """The rank, from 1, of the likeliest mentioned class among all; ties count for the caption."""
    return int((similarities > similarities[mentioned].max()).sum()) + 1
