"""Renderer of the `scenes` source: shapes, handwritten digits and printed words over crops of photos."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlmflow.images.decoding import decode

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
FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")
MONOSPACED = FONTS.index("DejaVuSansMono.ttf")
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


@dataclass(frozen=True)
class SceneObject:
    """One object of an image: its kind, its appearance and its box (xyxy pixels)."""

    category: str
    name: str  # "circle", "digit 7", "word sun"
    colour: str
    size: str  # small or large
    box: tuple[int, int, int, int]

    @property
    def phrase(self) -> str:
        return f"{self.colour} {self.name}"


def render_scene(
    rng: np.random.Generator, split: str, objects: list[tuple[str, str]] | None = None
) -> tuple[Image.Image, list[SceneObject]]:
    """Draw an image of 64×64 pixels with 1–4 objects that do not overlap.

    `objects` are the (shape, colour) of the objects to draw; None draws random ones.
    """
    canvas = _background(rng, split, SIDE, SIDE)
    rendered: list[SceneObject] = []
    for i in range(len(objects) if objects else int(rng.integers(1, 5))):
        kind = objects[i] if objects else None
        item, mask = _random_object(rng, split, kind)
        height, width = mask.shape
        for _ in range(12):
            x, y = int(rng.integers(1, SIDE - width)), int(rng.integers(1, SIDE - height))
            box = (x, y, x + width, y + height)
            if all(_are_disjoint(box, other.box) for other in rendered):
                alpha = mask[..., None]
                colour = np.asarray(COLOURS[item.colour], np.float32)
                area = canvas[y : y + height, x : x + width]
                canvas[y : y + height, x : x + width] = area * (1 - alpha) + colour * alpha
                rendered.append(SceneObject(item.category, item.name, item.colour, item.size, box))
                break
    return Image.fromarray(canvas.astype(np.uint8)), rendered


def _random_object(
    rng: np.random.Generator, split: str, kind: tuple[str, str] | None
) -> tuple[SceneObject, np.ndarray]:
    """Return a random object and its coverage mask, (height, width) float in 0..1, cropped to the object."""
    size = "small" if rng.random() < 0.5 else "large"
    pixels = int(rng.integers(11, 14)) if size == "small" else int(rng.integers(19, 24))
    colour = kind[1] if kind else str(rng.choice(list(COLOURS)))
    draw = rng.random()
    if kind or draw < 0.7:
        shape = kind[0] if kind else str(rng.choice(SHAPES))
        return SceneObject(shape, shape, colour, size, (0, 0, 0, 0)), _shape_mask(shape, pixels)
    if draw < 0.85:
        images, targets = _digits(split)
        i = int(rng.integers(len(targets)))
        mask = (
            np.asarray(Image.fromarray(images[i]).resize((pixels, pixels), Image.Resampling.BICUBIC), np.float32) / 255
        )
        return SceneObject("digit", f"digit {targets[i]}", colour, size, (0, 0, 0, 0)), _crop_to_content(mask)
    word = str(rng.choice(WORDS))
    return SceneObject("word", f"word {word}", colour, size, (0, 0, 0, 0)), _text_mask(
        word, pixels * 3 // 4, int(rng.integers(len(FONTS)))
    )


def render_sign(rng: np.random.Generator, split: str) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Draw two plates of 66×24 pixels, one above the other, on 128×96 pixels; return the image, and lines with boxes.

    Like number plates, they have one size and dark monospaced letters on a light ground. A letter is about as wide as
    a patch of the demo model, which can therefore learn to read them within the demo; other fonts are harder.
    """
    canvas, lines = _background(rng, split, 128, 96), []
    for row in range(2):
        text = _random_string(rng, split)
        mask = _text_mask(text, 18, MONOSPACED)[..., None]
        height, width = mask.shape[:2]
        x0, y0 = int(rng.integers(0, 128 - 66)), int(row * 48 + rng.integers(0, 48 - 24))
        x, y = x0 + int(rng.integers(2, 6)), y0 + (24 - height) // 2
        ink, plate = rng.integers(0, 80, 3), rng.integers(170, 256, 3)
        area = canvas[y0 : y0 + 24, x0 : x0 + 66]
        area[:] = 0.2 * area + 0.8 * plate
        letters = canvas[y : y + height, x : x + width]
        letters[:] = letters * (1 - mask) + ink * mask
        lines.append({"text": text, "x0": x0, "y0": y0, "x1": x0 + 66, "y1": y0 + 24})
    return Image.fromarray(canvas.astype(np.uint8)), lines


def _random_string(rng: np.random.Generator, split: str) -> str:
    """Return a random string of the split; the sum of its letters decides the split, so that no string is in both."""
    while True:
        text = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=int(rng.integers(2, 6))))
        if (sum(map(ord, text)) % 5 == 0) == (split == "test"):
            return text


def _background(rng: np.random.Generator, split: str, width: int, height: int) -> np.ndarray:
    """Return a random crop of a photo, (height, width, 3) float: mirrored, recoloured, with lower contrast."""
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
        photo = decode(path.read_bytes())
        photo.thumbnail((320, 320))
        photos.append(photo)
    return photos


@cache
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits, (N, 8, 8) uint8 and their values; the last 400 are for the test split."""
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    part = slice(None, -400) if split == "train" else slice(-400, None)
    pixels = np.asarray(images)[part].reshape(-1, 8, 8)
    return np.clip(pixels * 16, 0, 255).astype(np.uint8), np.asarray(target)[part]


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
    angles = np.arange(10) * np.pi / 5 - np.pi / 2  # a star: ten corners, alternating outer and inner
    radii = np.where(np.arange(10) % 2 == 0, 0.5, 0.2)
    return [(0.5 + r * np.cos(a), 0.5 + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)]


@cache
def _text_mask(text: str, pixels: int, font: int) -> np.ndarray:
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONTS[font]
    # Pillow's basic layout: the other one needs fribidi on the system, and renders differently.
    face = ImageFont.truetype(str(file), max(9, pixels), layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = face.getbbox(text)
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), text, fill=255, font=face)
    return _crop_to_content(np.asarray(image, np.float32) / 255)


def _crop_to_content(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.max(1) > 0.2), np.flatnonzero(mask.max(0) > 0.2)
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _are_disjoint(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[2] + 1 < b[0] or b[2] + 1 < a[0] or a[3] + 1 < b[1] or b[3] + 1 < a[1]
