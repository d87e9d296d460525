"""The `scenes` source: small pictures whose truth is known, for a laptop with no network.

Real photos (scikit-image, scikit-learn) carry coloured shapes, real handwritten digits (scikit-learn's
`load_digits`) and printed words in real fonts (DejaVu, which ships with matplotlib). Four kinds of row:

- web: a picture and its caption, as found on the web: a share of them wrong, doubled, junk or broken;
- boxes: a picture with referring expressions and their boxes, and no caption, as annotators deliver it;
- signs: a larger picture with lines of random letters and their boxes;
- the test split: clean pictures with everything, over photos, digits and strings that training never saw.
"""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from components.dataset import uid

SIDE = 64
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 230),
    "yellow": (245, 225, 40),
    "orange": (250, 140, 20),
    "purple": (150, 40, 190),
    "pink": (250, 150, 190),
    "white": (245, 245, 245),
}
NUMBERS = ("zero", "one", "two", "three", "four")
WORDS = (
    "sun",
    "map",
    "tea",
    "bus",
    "key",
    "cat",
    "dog",
    "owl",
    "egg",
    "ink",
    "jam",
    "net",
    "oak",
    "pie",
    "ship",
    "wolf",
)
TRAIN_PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "brick.png",
    "gravel.png",
    "china.jpg",
    "ihc.png",
)
TEST_PHOTOS = ("flower.jpg", "motorcycle_left.png", "grass.png", "hubble_deep_field.jpg", "camera.png")
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


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """How many pictures of each kind, and how noisy the web is (shares of the web rows)."""

    web: int = 16000
    boxes: int = 6000
    signs: int = 6000
    test: int = 500
    shuffled: float = 0.30
    duplicates: float = 0.10
    junk: float = 0.10
    bad: float = 0.08

    def __post_init__(self) -> None:
        if min(self.web, self.boxes, self.signs, self.test) < 0:
            raise ValueError("web, boxes, signs and test count pictures and cannot be negative")
        if self.web and not 0 <= self.shuffled + self.duplicates + self.junk + self.bad <= 1:
            raise ValueError("shuffled, duplicates, junk and bad are shares of the web rows and must sum to at most 1")


@dataclass(frozen=True)
class Thing:
    """One object of a picture: what it is, how it looks and where it stands (xyxy pixels)."""

    category: str
    name: str  # "circle", "digit 7", "word sun"
    colour: str
    size: str  # small or large
    box: tuple[int, int, int, int]

    @property
    def coloured(self) -> str:
        return f"{self.colour} {self.name}"


CHUNK = 1000  # rows that are drawn from one seed, whatever the number of processes


def generate(scenes: Scenes, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the schema `pairs`, training kinds first, then the test split; the same for a seed."""
    kinds = (("web", scenes.web), ("boxes", scenes.boxes), ("signs", scenes.signs))
    jobs = [
        (scenes, kind, min(CHUNK, count - start), [seed, place, start])
        for place, (kind, count) in enumerate(kinds)
        for start in range(0, count, CHUNK)
    ]
    jobs.append((scenes, "test", scenes.test, [seed, len(kinds), 0]))
    if len(jobs) < 8:  # starting processes would take longer
        for job in jobs:
            yield from _chunk(job)
        return
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for rows in pool.map(_chunk, jobs):
            yield from rows


def _chunk(job: tuple[Scenes, str, int, list[int]]) -> list[dict[str, Any]]:
    scenes, kind, count, seed = job
    rng = np.random.default_rng(seed)
    if kind == "web":
        return list(_web(scenes, count, rng))
    if kind == "test":
        return list(_test(count, rng))
    return [_boxes(rng) if kind == "boxes" else _sign(rng, "train") for _ in range(count)]


def _boxes(rng: np.random.Generator) -> dict[str, Any]:
    picture, things = _scene(rng, "train")
    return _row(_jpeg(picture), "", "boxes", "train", regions=_regions(things))


def _web(scenes: Scenes, count: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
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
        picture, things = _scene(rng, "train")
        caption = _caption(things, rng)
        encoded = _jpeg(picture)
        if fate == "shuffled":
            _, others = _scene(rng, "train")
            caption = _caption(others, rng)
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
        picture, things = _scene(rng, "test")
        caption = _caption(things, rng)
        if caption not in seen:
            seen.add(caption)
            yield _row(_jpeg(picture), caption, "test/scene", "test", regions=_regions(things))
    classes = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    for i in range(count):
        colour, shape = classes[i % len(classes)].split()
        picture, _ = _scene(rng, "test", [(shape, colour)])
        yield _row(_jpeg(picture), "", "test/class", "test", label=f"{colour} {shape}")
    for _ in range(count // 2):
        yield _sign(rng, "test")


def _row(encoded: bytes, caption: str, source: str, split: str, **extra: Any) -> dict[str, Any]:
    try:
        width, height = Image.open(io.BytesIO(encoded)).size
    except OSError:
        width = height = 0
    row = {"label": "", "regions": [], "lines": [], "licence": "generated", "width": width, "height": height}
    # A picture without a caption is told apart by its annotations' source.
    return {**row, "uid": uid(encoded, caption), "image": encoded, "caption": caption,
            "source": f"scenes/{source}", "split": split, **extra}  # fmt: skip


# ---------------------------------------------------------------- pictures


def _scene(
    rng: np.random.Generator, split: str, wanted: list[tuple[str, str]] | None = None
) -> tuple[Image.Image, list[Thing]]:
    """Draw one picture of 64×64 pixels with 1–4 things that do not overlap (or just the `wanted` ones)."""
    canvas = _backdrop(rng, split, SIDE, SIDE)
    things: list[Thing] = []
    for i in range(len(wanted) if wanted else int(rng.integers(1, 5))):
        kind = wanted[i] if wanted else None
        thing, mask = _thing(rng, split, kind)
        height, width = mask.shape
        for _ in range(12):
            x, y = int(rng.integers(1, SIDE - width)), int(rng.integers(1, SIDE - height))
            box = (x, y, x + width, y + height)
            if all(_apart(box, other.box) for other in things):
                alpha = mask[..., None]
                colour = np.asarray(COLOURS[thing.colour], np.float32)
                area = canvas[y : y + height, x : x + width]
                canvas[y : y + height, x : x + width] = area * (1 - alpha) + colour * alpha
                things.append(Thing(thing.category, thing.name, thing.colour, thing.size, box))
                break
    return Image.fromarray(canvas.astype(np.uint8)), things


def _thing(rng: np.random.Generator, split: str, kind: tuple[str, str] | None) -> tuple[Thing, np.ndarray]:
    """Choose a thing and its coverage mask, (height, width) float in 0..1, cut to its bounds."""
    size = "small" if rng.random() < 0.5 else "large"
    pixels = int(rng.integers(11, 14)) if size == "small" else int(rng.integers(19, 24))
    colour = kind[1] if kind else str(rng.choice(list(COLOURS)))
    draw = rng.random()
    if kind or draw < 0.7:
        shape = kind[0] if kind else str(rng.choice(SHAPES))
        return Thing(shape, shape, colour, size, (0, 0, 0, 0)), _shape_mask(shape, pixels)
    if draw < 0.85:
        images, targets = _digits(split)
        i = int(rng.integers(len(targets)))
        mask = (
            np.asarray(Image.fromarray(images[i]).resize((pixels, pixels), Image.Resampling.BICUBIC), np.float32) / 255
        )
        return Thing("digit", f"digit {targets[i]}", colour, size, (0, 0, 0, 0)), _cut(mask)
    word = str(rng.choice(WORDS))
    return Thing("word", f"word {word}", colour, size, (0, 0, 0, 0)), _text_mask(
        word, pixels * 3 // 4, int(rng.integers(4))
    )


def _sign(rng: np.random.Generator, split: str) -> dict[str, Any]:
    """A picture of 128×96 pixels with two lines of 2–5 random letters on plates."""
    canvas, lines = _backdrop(rng, split, 128, 96), []
    for row in range(2):
        text = _string(rng, split)
        mask = _text_mask(text, int(rng.integers(20, 30)), int(rng.integers(4)))
        height, width = mask.shape
        x, y = int(rng.integers(4, max(5, 124 - width))), int(row * 46 + rng.integers(4, max(5, 44 - height)))
        width, height = min(width, 127 - x), min(height, 95 - y)
        mask = mask[:height, :width, None]
        dark = rng.random() < 0.5
        ink, plate = (rng.integers(0, 80, 3), rng.integers(170, 256, 3))[:: 1 if dark else -1]
        x0, y0, x1, y1 = max(0, x - 3), max(0, y - 3), min(128, x + width + 3), min(96, y + height + 3)
        canvas[y0:y1, x0:x1] = 0.2 * canvas[y0:y1, x0:x1] + 0.8 * plate
        canvas[y : y + height, x : x + width] = canvas[y : y + height, x : x + width] * (1 - mask) + ink * mask
        lines.append({"text": text, "x0": x0, "y0": y0, "x1": x1, "y1": y1})
    return _row(_jpeg(Image.fromarray(canvas.astype(np.uint8))), "", "signs", split, lines=lines)


def _string(rng: np.random.Generator, split: str) -> str:
    """A random string; the sum of its letters decides which split it belongs to, so that none is in both."""
    while True:
        text = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=int(rng.integers(2, 6))))
        if (sum(map(ord, text)) % 5 == 0) == (split == "test"):
            return text


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


def _backdrop(rng: np.random.Generator, split: str, width: int, height: int) -> np.ndarray:
    """A crop of a photo, (height, width, 3) float: mirrored, recoloured, its contrast lowered as behind a caption."""
    photos = _photos(split)
    photo = photos[rng.integers(len(photos))]
    zoom = rng.uniform(1.0, min(photo.width / width, photo.height / height, 4.0))
    w, h = int(width * zoom), int(height * zoom)
    x, y = int(rng.integers(0, photo.width - w + 1)), int(rng.integers(0, photo.height - h + 1))
    crop = photo.resize((width, height), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
    pixels = np.asarray(crop, np.float32)[:, :: 1 if rng.random() < 0.5 else -1, rng.permutation(3)]
    return pixels * rng.uniform(0.4, 0.65) + rng.uniform(20, 60)


@cache
def _photos(split: str) -> list[Image.Image]:
    import skimage
    import sklearn

    folders = [Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"]
    photos = []
    for name in TRAIN_PHOTOS if split == "train" else TEST_PHOTOS:
        path = next(folder / name for folder in folders if (folder / name).exists())
        photo = Image.open(path).convert("RGB")
        photo.thumbnail((320, 320))
        photos.append(photo)
    return photos


@cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, (N, 8, 8) uint8 and their values; the last 400 writers' digits are for the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = slice(None, -400) if split == "train" else slice(-400, None)
    return np.clip(digits.images[part] * 16, 0, 255).astype(np.uint8), digits.target[part]


@cache
def _shape_mask(shape: str, pixels: int) -> np.ndarray:
    scale = 8
    side = pixels * scale
    image = Image.new("L", (side, side))
    draw, end = ImageDraw.Draw(image), side - 1
    if shape == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, end, end), fill=255)
    elif shape == "cross":
        draw.rectangle((0, side // 3, end, 2 * side // 3), fill=255)
        draw.rectangle((side // 3, 0, 2 * side // 3, end), fill=255)
    else:
        draw.polygon([(x * end, y * end) for x, y in _outline(shape)], fill=255)
    return np.asarray(image.resize((pixels, pixels), Image.Resampling.BOX), np.float32) / 255


def _outline(shape: str) -> list[tuple[float, float]]:
    if shape == "triangle":
        return [(0.5, 0), (1, 1), (0, 1)]
    if shape == "diamond":
        return [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)]
    angles = np.arange(10) * np.pi / 5 - np.pi / 2  # a star: ten corners, every second one inside
    radii = np.where(np.arange(10) % 2 == 0, 0.5, 0.2)
    return [(0.5 + r * np.cos(a), 0.5 + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)]


@cache
def _text_mask(text: str, pixels: int, font: int) -> np.ndarray:
    import matplotlib

    names = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / names[font]
    face = ImageFont.truetype(str(file), max(9, pixels))
    left, top, right, bottom = face.getbbox(text)
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), text, fill=255, font=face)
    return _cut(np.asarray(image, np.float32) / 255)


def _cut(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.max(1) > 0.2), np.flatnonzero(mask.max(0) > 0.2)
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[2] + 1 < b[0] or b[2] + 1 < a[0] or a[3] + 1 < b[1] or b[3] + 1 < a[1]


def _jpeg(picture: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


# ---------------------------------------------------------------- words


def _caption(things: list[Thing], rng: np.random.Generator) -> str:
    """A caption with attributes, counts and relations, in one of a few wordings."""
    names = [f"{t.size} {t.coloured}" if rng.random() < 0.5 else t.coloured for t in things]
    if len(things) == 2 and rng.random() < 0.7:
        text = f"{_one(names[0])} {_relation(things[0].box, things[1].box)} {_one(names[1])}"
    else:
        order = sorted({t.coloured for t in things})
        counted = {c: sum(t.coloured == c for t in things) for c in order}
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


def _regions(things: list[Thing]) -> list[dict[str, Any]]:
    """A referring expression for every thing: colour and kind, and as much more as tells it from the others."""
    regions = []
    for thing in things:
        phrase = thing.coloured
        twins = [t for t in things if t.coloured == thing.coloured]
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
