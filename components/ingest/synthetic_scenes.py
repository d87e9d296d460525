"""The `scenes` source: small pictures whose truth is known, for a laptop with no network.

Real photos (scikit-image, scikit-learn) carry coloured shapes, real handwritten digits (scikit-learn's
`load_digits`) and printed words in real fonts (DejaVu, which ships with matplotlib). Five kinds of row:

- web: a picture and its caption, as found on the web: a share of them wrong, doubled, junk or broken;
- boxes: a picture with referring expressions and their boxes, and no caption, as annotators deliver it;
- signs: a larger picture with plates, each a line of random letters and its box;
- classes: a picture of one object and its class, and no caption, for a probe to learn from;
- the test split: clean pictures with everything, over photos, digits and strings that training never saw.
"""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from PIL import Image

from components.ingest import scene_captions
from components.ingest.config import ScenesConfig
from components.ingest.scene_renderer import COLOURS, SHAPES, SIDE, render_scene, render_sign
from vlmflow.artifacts.dataset import uid

JUNK = (
    "IMG_{:04d}.JPG",
    "DSC{:05d}",
    "https://example.org/p/{}",
    "click here {}",
    "{}",
    "<img src='{}.png'>",
    "image {}",
    "",
)


CHUNK = 1000  # rows that are drawn from one seed, whatever the number of processes


def generate(scenes: ScenesConfig, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the schema `pairs`, training kinds first, then the test split; the same for a seed."""
    kinds = (("web", scenes.web), ("boxes", scenes.boxes), ("signs", scenes.signs))
    jobs = [
        (scenes, kind, min(CHUNK, count - start), [seed, place, start])
        for place, (kind, count) in enumerate(kinds)
        for start in range(0, count, CHUNK)
    ]
    jobs.append((scenes, "test", scenes.test, [seed, len(kinds), 0]))
    if scenes.classes:  # drawn last, so that asking for them leaves the other rows as they are
        jobs.append((scenes, "classes", scenes.classes, [seed, len(kinds) + 1, 0]))
    if len(jobs) < 8:  # starting processes would take longer
        for job in jobs:
            yield from _chunk(job)
        return
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for rows in pool.map(_chunk, jobs):
            yield from rows


def _chunk(job: tuple[ScenesConfig, str, int, list[int]]) -> list[dict[str, Any]]:
    scenes, kind, count, seed = job
    rng = np.random.default_rng(seed)
    if kind == "web":
        return list(_web(scenes, count, rng))
    if kind == "test":
        return list(_test(count, rng))
    if kind == "classes":
        return list(_classes(count, rng, "train"))
    return [_boxes(rng) if kind == "boxes" else _sign(rng, "train") for _ in range(count)]


def _boxes(rng: np.random.Generator) -> dict[str, Any]:
    picture, things = render_scene(rng, "train")
    return _row(_jpeg(picture), "", "boxes", "train", regions=scene_captions.referring_expressions(things))


def _sign(rng: np.random.Generator, split: str) -> dict[str, Any]:
    picture, lines = render_sign(rng, split)
    return _row(_jpeg(picture), "", "signs" if split == "train" else "test/sign", split, lines=lines)


def _web(scenes: ScenesConfig, count: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Pairs as the web has them. What was done to a row stands in its `source`, which no rule reads."""
    kinds = ["shuffled", "duplicate", "junk", "bad", "clean"]
    shares = [scenes.shuffled, scenes.duplicates, scenes.junk, scenes.bad]
    fates = rng.choice(kinds, size=count, p=[*shares, max(0.0, 1 - sum(shares))])
    earlier: list[tuple[bytes, str]] = []
    for fate in fates:
        if fate == "duplicate" and earlier:
            encoded, caption = earlier[rng.integers(len(earlier))]
            if rng.random() < 0.5:  # the same picture, compressed again
                encoded = _jpeg(Image.open(io.BytesIO(encoded)), quality=int(rng.integers(70, 90)))
            yield _row(encoded, caption, "web/duplicate", "train")
            continue
        picture, things = render_scene(rng, "train")
        caption = scene_captions.describe_scene(things, rng)
        encoded = _jpeg(picture)
        if fate == "shuffled":
            _, others = render_scene(rng, "train")
            caption = scene_captions.describe_scene(others, rng)
        elif fate == "junk":
            caption = JUNK[rng.integers(len(JUNK))].format(int(rng.integers(10000)))
        elif fate == "bad":
            encoded = _broken(picture, rng)
        elif fate == "clean":
            earlier.append((encoded, caption))
        yield _row(encoded, caption, f"web/{fate}", "train")


def _test(count: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Clean rows with captions that no two share, one zero-shot picture and one sign for each of them."""
    seen: set[str] = set()
    while len(seen) < count:
        picture, things = render_scene(rng, "test")
        caption = scene_captions.describe_scene(things, rng)
        if caption not in seen:
            seen.add(caption)
            yield _row(
                _jpeg(picture), caption, "test/scene", "test", regions=scene_captions.referring_expressions(things)
            )
    yield from _classes(count, rng, "test")
    for _ in range(count // 2):
        yield _sign(rng, "test")


def _classes(count: int, rng: np.random.Generator, split: str) -> Iterator[dict[str, Any]]:
    """Pictures of one object each, the classes in turn."""
    classes = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    for i in range(count):
        colour, shape = classes[i % len(classes)]
        picture, _ = render_scene(rng, split, [(shape, colour)])
        source = "classes" if split == "train" else "test/class"
        yield _row(_jpeg(picture), "", source, split, label=f"{colour} {shape}")


def _row(encoded: bytes, caption: str, source: str, split: str, **extra: Any) -> dict[str, Any]:
    try:
        width, height = Image.open(io.BytesIO(encoded)).size
    except OSError:
        width = height = 0
    row = {"label": "", "regions": [], "lines": [], "licence": "generated", "width": width, "height": height}
    # A picture without a caption is told apart by its annotations' source.
    return {**row, "uid": uid(encoded, caption), "image": encoded, "caption": caption,
            "source": f"scenes/{source}", "split": split, **extra}  # fmt: skip


def _broken(picture: Image.Image, rng: np.random.Generator) -> bytes:
    """What the web does to pictures: cut off, blank, a tracking pixel, noise."""
    kind = int(rng.integers(4))
    if kind == 0:
        encoded = _jpeg(picture)
        return encoded[: int(len(encoded) * rng.uniform(0.3, 0.8))]
    if kind == 1:
        return _jpeg(Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in rng.integers(0, 256, 3))))
    if kind == 2:
        return _jpeg(picture.resize((int(rng.integers(1, 8)), int(rng.integers(1, 8)))))
    return rng.bytes(800)


def _jpeg(picture: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
