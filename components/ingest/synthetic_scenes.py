"""The `scenes` source: small synthetic images with known annotations, for a laptop without network.

Real photos (scikit-image, scikit-learn) are the background of coloured shapes, handwritten digits (scikit-learn's
`load_digits`) and printed words (DejaVu fonts, part of matplotlib). Five kinds of row:

- web: an image and a caption, as found on the web: a fraction of them mismatched, duplicated, junk or broken;
- boxes: an image with referring expressions and boxes, without a caption, as annotators deliver it;
- signs: a larger image of plates, each with a line of random letters and its box;
- classes: an image of one object with its class, without a caption, to train a linear probe;
- the test split: clean images with all annotations, with photos, digits and strings that are not in training.
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
from vlmflow.images.decoding import open_image

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


CHUNK = 1000  # rows per seed, independent of the number of processes


def generate(scenes: ScenesConfig, seed: int) -> Iterator[dict[str, Any]]:
    """Yield rows of the schema `pairs`, training kinds first, then the test split, reproducibly for a seed."""
    kinds = (("web", scenes.web), ("boxes", scenes.boxes), ("signs", scenes.signs))
    jobs = [
        (scenes, kind, min(CHUNK, count - start), [seed, number, start])
        for number, (kind, count) in enumerate(kinds)
        for start in range(0, count, CHUNK)
    ]
    jobs.append((scenes, "test", scenes.test, [seed, len(kinds), 0]))
    if scenes.classes:  # last, so that they do not change the seeds of the other rows
        jobs.append((scenes, "classes", scenes.classes, [seed, len(kinds) + 1, 0]))
    if len(jobs) < 8:  # starting processes would take longer than the work
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
    image, objects = render_scene(rng, "train")
    return _row(_jpeg(image), "", "boxes", "train", regions=scene_captions.referring_expressions(objects))


def _sign(rng: np.random.Generator, split: str) -> dict[str, Any]:
    image, lines = render_sign(rng, split)
    return _row(_jpeg(image), "", "signs" if split == "train" else "test/sign", split, lines=lines)


def _web(scenes: ScenesConfig, count: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield noisy pairs. The kind of noise is in `source`, which no curation rule uses."""
    kinds = ["shuffled", "duplicate", "junk", "bad", "clean"]
    shares = [scenes.shuffled, scenes.duplicates, scenes.junk, scenes.bad]
    row_kinds = rng.choice(kinds, size=count, p=[*shares, max(0.0, 1 - sum(shares))])
    earlier: list[tuple[bytes, str]] = []
    for kind in row_kinds:
        if kind == "duplicate" and earlier:
            encoded, caption = earlier[rng.integers(len(earlier))]
            if rng.random() < 0.5:  # the same image, compressed again
                encoded = _jpeg(open_image(encoded), quality=int(rng.integers(70, 90)))
            yield _row(encoded, caption, "web/duplicate", "train")
            continue
        image, objects = render_scene(rng, "train")
        caption = scene_captions.describe_scene(objects, rng)
        encoded = _jpeg(image)
        if kind == "shuffled":
            _, others = render_scene(rng, "train")
            caption = scene_captions.describe_scene(others, rng)
        elif kind == "junk":
            caption = JUNK[rng.integers(len(JUNK))].format(int(rng.integers(10000)))
        elif kind == "bad":
            encoded = _broken(image, rng)
        elif kind == "clean":
            earlier.append((encoded, caption))
        yield _row(encoded, caption, f"web/{kind}", "train")


def _test(count: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield clean rows with distinct captions, then as many images of one object, then half as many signs."""
    seen: set[str] = set()
    while len(seen) < count:
        image, objects = render_scene(rng, "test")
        caption = scene_captions.describe_scene(objects, rng)
        if caption not in seen:
            seen.add(caption)
            yield _row(
                _jpeg(image), caption, "test/scene", "test", regions=scene_captions.referring_expressions(objects)
            )
    yield from _classes(count, rng, "test")
    for _ in range(count // 2):
        yield _sign(rng, "test")


def _classes(count: int, rng: np.random.Generator, split: str) -> Iterator[dict[str, Any]]:
    """Yield images of one object each, cycling through the classes."""
    classes = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    for i in range(count):
        colour, shape = classes[i % len(classes)]
        image, _ = render_scene(rng, split, [(shape, colour)])
        source = "classes" if split == "train" else "test/class"
        yield _row(_jpeg(image), "", source, split, label=f"{colour} {shape}")


def _row(encoded: bytes, caption: str, source: str, split: str, **extra: Any) -> dict[str, Any]:
    try:
        width, height = open_image(encoded).size
    except OSError:
        width = height = 0
    row = {"label": "", "regions": [], "lines": [], "licence": "generated", "width": width, "height": height}
    # Without a caption, `source` shows which annotations the row has.
    return {**row, "uid": uid(encoded, caption), "image": encoded, "caption": caption,
            "source": f"scenes/{source}", "split": split, **extra}  # fmt: skip


def _broken(image: Image.Image, rng: np.random.Generator) -> bytes:
    """Return a broken image as found on the web: truncated, blank, a tracking pixel or noise."""
    kind = int(rng.integers(4))
    if kind == 0:
        encoded = _jpeg(image)
        return encoded[: int(len(encoded) * rng.uniform(0.3, 0.8))]
    if kind == 1:
        return _jpeg(Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in rng.integers(0, 256, 3))))
    if kind == 2:
        return _jpeg(image.resize((int(rng.integers(1, 8)), int(rng.integers(1, 8)))))
    return rng.bytes(800)


def _jpeg(image: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
