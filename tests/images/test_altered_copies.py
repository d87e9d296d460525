"""Altered copies are found whichever of the two images was altered; other images, colours and flat ones are not."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vlmflow.images.altered_copies import find_altered_copies, small_images

Alter = Callable[[Image.Image], Image.Image]


def picture(seed: int) -> Image.Image:
    """Smooth random colours: a distinct image for each seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((160, 120), Image.Resampling.BICUBIC)


def small(*images: Image.Image) -> np.ndarray:
    squeezed = [image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR) for image in images]
    return small_images(np.stack([np.asarray(image.convert("YCbCr")) for image in squeezed]))


ALTERED: dict[str, Alter] = {
    "the same": lambda image: image,
    "mirror": ImageOps.mirror,
    "flip": ImageOps.flip,
    "turned": lambda image: image.rotate(180),
    "quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "crop of 5% on each side": lambda image: image.crop((8, 6, 152, 114)),
    "crop of the corner": lambda image: image.crop((32, 24, 160, 120)),
    "mirrored crop": lambda image: ImageOps.mirror(image.crop((8, 6, 152, 114))),
    "white frame": lambda image: ImageOps.expand(image, 12, "white"),
    "black frame": lambda image: ImageOps.expand(image, 6, "black"),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("name", list(ALTERED))
def test_each_alteration_is_found_in_both_directions(name: str) -> None:
    originals = [picture(seed) for seed in range(12)]
    copies = [ALTERED[name](image) for image in originals]
    for train, test in ((copies, originals), (originals, copies)):
        found = find_altered_copies(small(*train, picture(99)), small(*test), 0.9)
        assert found.of.tolist() == [*range(12), -1]
        assert np.all(found.similarity[:12] >= 0.9) and np.isnan(found.similarity[12])


def test_the_colours_must_agree() -> None:
    """A red and a blue heart of the same brightness are two images."""
    mask = np.asarray(picture(1).convert("L")) > 128
    red, blue = (
        Image.fromarray(np.where(mask[..., None], colour, 255).astype(np.uint8))
        for colour in ((200, 30, 30), (40, 40, 250))
    )
    assert find_altered_copies(small(red, ImageOps.mirror(red)), small(blue), 0.9).of.tolist() == [-1, -1]


def test_flat_images_and_an_empty_test_split_match_nothing() -> None:
    plain = Image.new("RGB", (64, 64), (90, 90, 90))
    assert find_altered_copies(small(plain), small(plain, picture(1)), 0.9).of.tolist() == [-1]
    assert find_altered_copies(small(plain), small(picture(1))[:0], 0.9).of.tolist() == [-1]


def test_unrelated_images_are_not_found() -> None:
    many = small(*(picture(seed) for seed in range(300)))
    assert (find_altered_copies(many[:200], many[200:], 0.9).of < 0).all()
