"""Label consistency: compare the class in a caption with the encoder's zero-shot classification of the image."""

import numpy as np

from components.curate.phrases import find_phrases, normalize_caption
from vlmflow.evaluation import objects


def mentioned_classes(caption: str, classes: tuple[str, ...]) -> list[int]:
    """Return the indices of the classes that the caption names as whole words, singular or plural."""
    forms = {
        normalize_caption(form): index for index, name in enumerate(classes) for form in (name, objects.plural(name))
    }
    return sorted({forms[form] for form in find_phrases(caption, frozenset(forms))})


def best_rank(similarities: np.ndarray, mentioned: list[int]) -> int:
    """Return the rank, from 1, of the most similar mentioned class among all classes; ties favour the caption.

    Args:
        similarities: (C,) cosines of the image and each class. mentioned: indices of the classes in the caption.
    """
    return int((similarities > similarities[mentioned].max()).sum()) + 1
