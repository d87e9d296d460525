import io
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.conftest import SHARED
from vlmflow.images.decoding import decode
from vlmflow.images.image_statistics import (
    SIDE,
    ImageStatistics,
    Thumbnail,
    compute_statistics,
    ignore_pillow_warnings,
    laplacian,
    read_thumbnail,
)

RED, GREEN, BLUE, WHITE = (200, 40, 40), (40, 200, 40), (40, 40, 200), (255, 255, 255)


def quarters(size: tuple[int, int] = (80, 40)) -> Image.Image:
    """Red, green, blue and white, clockwise from the upper left."""
    image = Image.new("RGB", size, RED)
    half = (size[0] // 2, size[1] // 2)
    image.paste(GREEN, (half[0], 0, size[0], half[1]))
    image.paste(WHITE, (0, half[1], half[0], size[1]))
    image.paste(BLUE, (half[0], half[1], size[0], size[1]))
    return image


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def corners(image: Image.Image) -> np.ndarray:
    """(2, 2, 3) colours in the middle of each quarter."""
    w, h = image.size
    points = ((w // 4, h // 4), (3 * w // 4, h // 4), (w // 4, 3 * h // 4), (3 * w // 4, 3 * h // 4))
    return np.array([image.getpixel(point) for point in points]).reshape(2, 2, 3)


EXPECTED = np.array([RED, GREEN, WHITE, BLUE]).reshape(2, 2, 3)


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
        ("GIF", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
    ],
)
def test_formats_and_modes_give_the_same_colours(form: str, mode: str, options: dict[str, Any]) -> None:
    image = decode(encoded(quarters().convert(mode), form, **options))
    assert (image.mode, image.size) == ("RGB", (80, 40))
    assert np.abs(corners(image) - EXPECTED).max() <= 12


def test_transparency_is_laid_on_white() -> None:
    image = quarters().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 20, 40, 40))  # the white quarter, now transparent black
    assert np.array_equal(corners(decode(encoded(image, "PNG"))), EXPECTED)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encoded(palette, "PNG", transparency=1)).getpixel((4, 4)) == WHITE
    grey = Image.new("LA", (8, 8), (0, 128))
    assert decode(encoded(grey, "PNG")).getpixel((4, 4)) == (127, 127, 127)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = np.repeat(np.linspace(0, 65535, 64, dtype=np.uint16)[None], 32, axis=0)
    image = np.asarray(decode(encoded(Image.fromarray(levels), "PNG")))
    assert np.abs(image[0, :, 0].astype(int) - np.linspace(0, 255, 64)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what undoes each, as Image.Transpose values
    stored = quarters() if orientation == 1 else quarters().transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "JPEG", quality=95, exif=exif)
    assert np.abs(corners(decode(data)) - EXPECTED).max() <= 12
    seen = read_thumbnail(data)
    assert (seen.reason, seen.width, seen.height) == ("", 80, 40)


def test_an_animation_counts_by_its_first_frame() -> None:
    data = encoded(quarters(), "GIF", save_all=True, append_images=[Image.new("RGB", (80, 40))])
    assert np.abs(corners(decode(data)) - EXPECTED).max() <= 2


@pytest.mark.parametrize(("form", "keep"), [("PNG", 0.5), ("JPEG", 0.5), ("GIF", 0.3), ("WEBP", 0.5), ("PNG", 0.05)])
def test_a_truncated_file_has_a_reason(form: str, keep: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, form)
    assert read_thumbnail(data).reason == ""
    reason = read_thumbnail(data[: int(len(data) * keep)]).reason
    assert reason and "\n" not in reason


@pytest.mark.parametrize(
    "data", [None, b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(50), b"\xff\xd8\xff\xe0" + bytes(99)]
)
def test_other_bytes_are_undecodable(data: bytes | None) -> None:
    assert read_thumbnail(data).reason


def test_damage_anywhere_never_raises() -> None:
    generator = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encoded(quarters(), form)
        for _ in range(60):
            data = bytearray(whole)
            for place in generator.integers(0, len(data), 4):
                data[place] = generator.integers(256)
            with ignore_pillow_warnings():
                seen = read_thumbnail(bytes(data))
            assert seen.reason or seen.width * seen.height > 0


def test_only_warnings_of_pillow_are_ignored() -> None:
    with ignore_pillow_warnings(), pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


def test_a_large_jpeg_keeps_its_size_and_is_decoded_small() -> None:
    data = encoded(quarters((1600, 800)), "JPEG")
    seen = read_thumbnail(data)
    assert (seen.width, seen.height) == (1600, 800)
    assert decode(data, at_least=128).size == (400, 200)
    assert seen.thumbnail is not None and seen.thumbnail.shape == (SIDE, SIDE, 3)


def seen(luma: np.ndarray) -> Thumbnail:
    pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)
    pixels[..., 0] = luma
    return Thumbnail(width=SIDE, height=SIDE, thumbnail=pixels)


def test_statistics_against_slow_formulas() -> None:
    generator = np.random.default_rng(0)
    lumas = generator.integers(0, 256, (5, SIDE, SIDE))
    found = compute_statistics([seen(luma) for luma in lumas])
    for i, luma in enumerate(lumas):
        assert found.contrast[i] == pytest.approx(luma.std(), rel=1e-4)
        across = np.corrcoef(luma[:, 1:].ravel(), luma[:, :-1].ravel())[0, 1]
        down = np.corrcoef(luma[1:].ravel(), luma[:-1].ravel())[0, 1]
        assert found.correlation[i] == pytest.approx(max(abs(across), abs(down)), abs=0.02)
        means = [[luma[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean() for x in range(16)] for y in range(16)]
        assert np.abs(found.cells[i, :256] - np.array(means).ravel()).max() <= 0.51
        assert (found.cells[i, 256:] == 128).all()


def test_dhash_bits_are_rises_to_the_right() -> None:
    ramp = np.tile(np.linspace(0, 255, SIDE), (SIDE, 1))
    half = ramp.copy()
    half[SIDE // 2 :] = 77
    hashes = compute_statistics([seen(ramp), seen(ramp[:, ::-1]), seen(half)]).hashes.tolist()
    assert hashes == [2**64 - 1, 0, (2**32 - 1) << 32]


def test_noise_and_blank_differ_from_fine_patterns() -> None:
    generator = np.random.default_rng(0)

    def measured(pixels: np.ndarray) -> tuple[float, float]:
        with ignore_pillow_warnings():
            found = compute_statistics(
                [read_thumbnail(encoded(Image.fromarray(pixels.astype(np.uint8)), "JPEG", quality=85))]
            )
        return float(found.contrast[0]), float(found.correlation[0])

    for side in (64, 96, 200):
        contrast, correlation = measured(generator.integers(0, 256, (side, side, 3)))
        assert correlation < 0.35 and contrast > 4, side
        contrast, _ = measured(128 + generator.normal(0, 2, (side, side, 1)).repeat(3, axis=2))
        assert contrast < 4, side
    lines = np.zeros((64, 64, 3)) + 255 * (np.arange(64) % 8 < 2)[:, None, None]
    board = 255 * ((np.arange(64)[:, None] // 4 + np.arange(64) // 4) % 2)[..., None].repeat(3, axis=2)
    text = np.full((64, 64, 3), 255)
    text[8::8, 4:60] = 0
    for pixels in (lines, board, text):
        contrast, correlation = measured(pixels)
        assert contrast > 4 and correlation > 0.35


def soft(seed: int, size: int = 320) -> Image.Image:
    """Patches with hard edges, coloured."""
    patches = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((size, size), Image.Resampling.NEAREST)


def measured(images: list[Image.Image], form: str = "JPEG") -> ImageStatistics:
    return compute_statistics([read_thumbnail(encoded(image, form), sharpness=True) for image in images])


def test_sharpness_separates_blurred_from_sharp_images_at_any_size() -> None:
    for size in (128, 320, 1000):
        sharp = [soft(seed, size) for seed in range(12)]
        blurred = [image.filter(ImageFilter.GaussianBlur(size / 80)) for image in sharp]
        least, most = measured(sharp).sharpness.min(), measured(blurred).sharpness.max()
        assert least > 4 * most, (size, least, most)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    """Against the slow way, pixel by pixel."""
    grey = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    g = grey.astype(float)
    found = [
        g[y - 1, x] + g[y + 1, x] + g[y, x - 1] + g[y, x + 1] - 4 * g[y, x] for y in range(1, 8) for x in range(1, 6)
    ]
    assert laplacian(Image.fromarray(grey)) == pytest.approx(np.var(found), rel=1e-5)
    assert laplacian(Image.new("L", (2, 9))) == 0.0


def test_sharpness_is_measured_only_on_request() -> None:
    assert read_thumbnail(encoded(soft(0), "PNG")).sharpness == 0.0


def test_entropy_is_that_of_the_histogram() -> None:
    halves = Image.new("L", (64, 64), 0)
    halves.paste(255, (0, 0, 32, 64))
    four = Image.fromarray(np.repeat(np.array([0, 60, 120, 180], np.uint8), 1024).reshape(64, 64))
    plain = Image.new("L", (64, 64), 9)
    assert measured([plain, halves, four], "PNG").entropy == pytest.approx([0, 1, 2], abs=1e-6)


def test_colourfulness_is_hasler_and_suesstrunks() -> None:
    """Against their formula on R, G and B."""
    for seed in range(5):
        image = soft(seed, SIDE)
        red, green, blue = np.asarray(image, dtype=float).transpose(2, 0, 1)
        one, other = red - green, (red + green) / 2 - blue
        truth = np.hypot(one.std(), other.std()) + 0.3 * np.hypot(one.mean(), other.mean())
        assert measured([image], "PNG").colorfulness[0] == pytest.approx(truth, rel=0.02)


def test_colorfulness_of_grey_and_faint_images() -> None:
    image = soft(1)
    grey = image.convert("L").convert("RGB")
    colour = measured([grey, Image.blend(grey, image, 0.1), image], "PNG").colorfulness
    assert colour[0] < 1 < colour[1] < 20 < colour[2]


def test_blurred_photos_of_textbooks_are_found() -> None:
    """Precision and recall of a threshold of 100 on real photos, and on the same ones blurred."""
    folder = SHARED / "data" / "textbooks" / "images"
    if not folder.exists():
        pytest.skip(f"{folder} is not here")
    photos = [decode(file.read_bytes()) for file in sorted(folder.iterdir())[::70]]
    blurred = [photo.filter(ImageFilter.GaussianBlur(max(photo.size) / 100)) for photo in photos]
    wrong, found = ((measured(images).sharpness < 100).sum() for images in (photos, blurred))
    assert len(photos) >= 40
    assert found / (found + wrong) >= 0.95 and found / len(blurred) >= 0.95
