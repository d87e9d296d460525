"""Says what a scene shows: captions, and expressions that refer to one thing of it."""

from typing import Any

import numpy as np

from components.ingest.scene_renderer import SceneObject

NUMBERS = ("zero", "one", "two", "three", "four")


def describe_scene(things: list[SceneObject], rng: np.random.Generator) -> str:
    """A caption with attributes, counts and relations, in one of a few wordings."""
    names = [f"{t.size} {t.phrase}" if rng.random() < 0.5 else t.phrase for t in things]
    if len(things) == 2 and rng.random() < 0.7:
        text = f"{_one(names[0])} {_relation(things[0].box, things[1].box)} {_one(names[1])}"
    else:
        order = sorted({t.phrase for t in things})
        counted = {c: sum(t.phrase == c for t in things) for c in order}
        parts = [
            f"{NUMBERS[n]} {_plural(c)}" if n > 1 else _one(next(m for m in names if m.endswith(c)))
            for c, n in counted.items()
        ]
        rng.shuffle(parts)
        text = _join(parts)
    lead = ("", "a photo with ", "there is ", "we see ")[int(rng.integers(4))]
    return lead + text


def _relation(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> str:
    dx, dy = (b[0] + b[2] - a[0] - a[2]), (b[1] + b[3] - a[1] - a[3])
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def _one(name: str) -> str:
    return f"{'an' if name.startswith('orange') else 'a'} {name}"


def _plural(name: str) -> str:
    colour, noun, *rest = name.split()
    return " ".join([colour, noun + ("es" if noun == "cross" else "s"), *rest])


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def referring_expressions(things: list[SceneObject]) -> list[dict[str, Any]]:
    """A referring expression for every thing: colour and kind, and as much more as tells it from the others."""
    regions = []
    for thing in things:
        phrase = thing.phrase
        twins = [t for t in things if t.phrase == thing.phrase]
        if len(twins) > 1 and sum(t.size == thing.size for t in twins) == 1:
            phrase = f"{thing.size} {phrase}"
        elif len(twins) > 1:
            left = [t.box[0] for t in twins]
            if len(twins) > 2 or left[0] == left[1]:
                continue  # no short expression tells them apart
            phrase = f"{'left' if thing.box[0] == min(left) else 'right'} {phrase}"
        x0, y0, x1, y1 = thing.box
        regions.append({"phrase": phrase, "category": thing.category, "x0": x0, "y0": y0, "x1": x1, "y1": y1})
    return regions
