"""Recall and precision of the rule `altered_copy`, on parts of the two photos that scikit-learn ships.

    python -m benchmarks.altered_copies

40 parts of the photos are the test split. Each alteration of each of them should be found among the training images
(recall), and none of 400 other parts of the photos, which overlap no test image, should be (false positives).
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import binomtest
from sklearn.datasets import load_sample_images

from vlmflow.images.altered_copies import find_altered_copies, small_images
from vlmflow.images.image_statistics import SIDE

WIDTH, HEIGHT, TEST, OTHERS = 128, 96, 40, 400
MIN_CONTRAST = 20
THRESHOLDS = (0.85, 0.9, 0.95)
ALTERATIONS = {
    "mirrored": ImageOps.mirror,
    "turned by 180°": lambda image: image.rotate(180),
    "turned by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "crop, 5% off each side": lambda image: image.crop((6, 5, 122, 91)),
    "crop, 20% off a corner": lambda image: image.crop((26, 19, 128, 96)),
    "crop, 10% off one side": lambda image: image.crop((13, 0, 128, 96)),
    "crop, 15% off each side": lambda image: image.crop((19, 14, 109, 82)),
    "white frame of 4%": lambda image: ImageOps.expand(image, 5, "white"),
    "brightness × 1.15": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "brightness × 1.4": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "contrast × 0.6": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "grey": lambda image: image.convert("L"),
}


def parts(generator: np.random.Generator) -> tuple[list[Image.Image], list[Image.Image]]:
    """Return test parts from the upper halves of the photos, and other parts from the lower halves."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]

    def draw(count: int, top: int, bottom: int) -> list[Image.Image]:
        found: list[Image.Image] = []
        while len(found) < count:
            photo = photos[len(found) % len(photos)]
            x, y = generator.integers(0, photo.width - WIDTH), generator.integers(top, bottom - HEIGHT)
            part = photo.crop((int(x), int(y), int(x) + WIDTH, int(y) + HEIGHT))
            if np.asarray(part.convert("L")).std() >= MIN_CONTRAST:  # not of the empty sky
                found.append(part)
        return found

    half = photos[0].height // 2
    return draw(TEST, 0, half), draw(OTHERS, half, photos[0].height)


def small(images: list[Image.Image]) -> np.ndarray:
    """Return the images as the rule compares them."""
    squares = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for image in images]
    return small_images(np.stack([np.asarray(square.convert("YCbCr")) for square in squares]))


def share(found: np.ndarray) -> str:
    """Return the share of copies found, with its 95% interval (Wilson's); found: (N,) bool."""
    low, high = binomtest(int(found.sum()), len(found)).proportion_ci(method="wilson")
    return f"{found.mean():.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Print a table: a row for each alteration, a column for each threshold."""
    test, others = parts(np.random.default_rng(0))
    wanted, unrelated = small(test), small(others)
    print("| alteration | " + " | ".join(map(str, THRESHOLDS)) + " |")  # noqa: T201
    print("|---" * (1 + len(THRESHOLDS)) + "|")  # noqa: T201
    for name, alter in ALTERATIONS.items():
        altered = small([alter(image) for image in test])
        found = [share(find_altered_copies(altered, wanted, least).of >= 0) for least in THRESHOLDS]
        print(f"| {name} | " + " | ".join(found) + " |")  # noqa: T201
    false = [share(find_altered_copies(unrelated, wanted, least).of >= 0) for least in THRESHOLDS]
    print(f"| false positives of {OTHERS} | " + " | ".join(false) + " |")  # noqa: T201


if __name__ == "__main__":
    main()
