"""Captions of synthetic scenes, and expressions that refer to one object of a scene."""

from typing import Any

import numpy as np

from components.ingest.scene_renderer import SceneObject
from vlmflow.evaluation.objects import NUMBERS, article, join, plural


def describe_scene(objects: list[SceneObject], rng: np.random.Generator) -> str:
    """Return a caption with attributes, counts and relations, in one of a few wordings."""
    names = [f"{t.size} {t.phrase}" if rng.random() < 0.5 else t.phrase for t in objects]
    if len(objects) == 2 and rng.random() < 0.7:
        text = f"{_one(names[0])} {_relation(objects[0].box, objects[1].box)} {_one(names[1])}"
    else:
        order = sorted({t.phrase for t in objects})
        counted = {c: sum(t.phrase == c for t in objects) for c in order}
        parts = [
            f"{NUMBERS[n]} {_plural(c)}" if n > 1 else _one(next(m for m in names if m.endswith(c)))
            for c, n in counted.items()
        ]
        rng.shuffle(parts)
        text = join(parts)
    lead = ("", "a photo with ", "there is ", "we see ")[int(rng.integers(4))]
    return lead + text


def _relation(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> str:
    dx, dy = (b[0] + b[2] - a[0] - a[2]), (b[1] + b[3] - a[1] - a[3])
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def _one(name: str) -> str:
    return f"{article(name)} {name}"


def _plural(name: str) -> str:
    colour, noun, *rest = name.split()
    return " ".join([colour, plural(noun), *rest])


def referring_expressions(objects: list[SceneObject]) -> list[dict[str, Any]]:
    """Return a referring expression for each object: colour and kind, plus size or side if several look alike.

    An object that no short expression distinguishes from the others gets none.
    """
    regions = []
    for item in objects:
        phrase = item.phrase
        similar = [t for t in objects if t.phrase == item.phrase]
        if len(similar) > 1 and sum(t.size == item.size for t in similar) == 1:
            phrase = f"{item.size} {phrase}"
        elif len(similar) > 1:
            left = [t.box[0] for t in similar]
            if len(similar) > 2 or left[0] == left[1]:
                continue  # no short expression distinguishes them
            phrase = f"{'left' if item.box[0] == min(left) else 'right'} {phrase}"
        x0, y0, x1, y1 = item.box
        regions.append({"phrase": phrase, "category": item.category, "x0": x0, "y0": y0, "x1": x1, "y1": y1})
    return regions
