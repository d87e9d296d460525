"""Pictures as they come: every mode as people see it, every damaged file by name and reason, and none too large."""

import base64
import gzip
import io
import json
import random
import struct
import warnings
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, UnidentifiedImageError

from components.ingest.sandboxed_decoder import DecodedImage, DecoderPool, SizeLimits, decode_and_shrink
from tests.ingest.test_ingestion import encoded, folder, run
from vlmflow.errors import RecordError
from vlmflow.images.decoding import decode
from vlmflow.images.image_bytes import read_size, resolve
from vlmflow.images.image_statistics import read_thumbnail
from vlmflow.serving.request_images import ImageReader

HALVES = np.zeros((16, 32, 3), np.uint8)  # red on the left, blue on the right
HALVES[:, :16], HALVES[:, 16:] = (255, 0, 0), (0, 0, 255)


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def examine(things: list[bytes], bounds: SizeLimits | None = None, count: int = 2) -> list[DecodedImage | RecordError]:
    with DecoderPool(bounds or SizeLimits(), count) as examiners:
        found = [looked for _, looked in examiners.map(things, lambda one: [one])]
    return [one if isinstance(one, RecordError) else one[0] for one in found]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def near(picture: Image.Image, at: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    found = picture.getpixel(at)
    assert isinstance(found, tuple)
    return max(abs(a - b) for a, b in zip(found, colour, strict=True)) <= tolerance


def test_cmyk_colours() -> None:
    printed = Image.fromarray(HALVES).convert("CMYK")
    for data in (saved(printed, "JPEG", quality=95), saved(printed, "TIFF")):
        picture = decode(data)
        assert near(picture, (4, 8), (255, 0, 0)) and near(picture, (28, 8), (0, 0, 255))


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(kind: str, form: str) -> None:
    ramp = np.repeat(np.linspace(0, 65535, 32).astype(kind)[None], 8, 0)
    if form == "TIFF" or kind == "<u2":
        picture = decode(saved(Image.fromarray(ramp), form))
        assert [picture.getpixel((x, 4))[0] for x in (0, 16, 31)] == [0, 132, 255]  # type: ignore[index]


def test_16_bits_a_colour() -> None:
    row = b"\0" + struct.pack(">3H", 65535, 32768, 0) * 4
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    assert decode(data).getpixel((1, 1)) == (255, 128, 0)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floats_are_fractions_or_levels(top: float) -> None:
    data = saved(Image.fromarray(np.full((4, 4), top / 2, np.float32) + np.eye(4, dtype=np.float32) * top / 2), "TIFF")
    assert decode(data).getpixel((0, 0)) == (255, 255, 255) and decode(data).getpixel((0, 1)) == (128, 128, 128)


def test_transparency_lies_on_white() -> None:
    alpha = np.dstack([HALVES, np.repeat([[0] * 16 + [255] * 16], 16, 0).astype(np.uint8)])
    palette = Image.fromarray(HALVES).quantize(4)
    red = palette.getpixel((0, 0))
    grey = Image.fromarray(np.dstack([np.zeros((4, 4)), np.zeros((4, 4))]).astype(np.uint8), "LA")
    for data in (
        saved(Image.fromarray(alpha), "PNG"),
        saved(Image.fromarray(alpha), "WEBP", lossless=True),
        saved(palette, "PNG", transparency=red),
        saved(palette, "GIF", transparency=red),
        saved(Image.fromarray(HALVES), "PNG", transparency=(255, 0, 0)),
    ):
        picture = decode(data)
        assert near(picture, (4, 8), (255, 255, 255)) and near(picture, (28, 8), (0, 0, 255))
    assert decode(saved(grey, "PNG")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    lossless = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **lossless)
    assert near(decode(data), (8, 8), (255, 0, 0))


@pytest.mark.parametrize(("orientation", "at"), [(1, (1, 4)), (3, (30, 4)), (6, (4, 1)), (8, (4, 30))])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_upright_by_its_orientation(form: str, orientation: int, at: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(HALVES), form, exif=exif)
    assert near(decode(data), at, (255, 0, 0))
    (found,) = examine([data])
    assert isinstance(found, DecodedImage) and found.size == decode(data).size and found.encoded == data


def test_an_orientation_behind_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(HALVES), "PNG")
    data = data[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]
    (found,) = examine([data])
    assert isinstance(found, DecodedImage) and found.size == decode(data).size == (16, 32)


def test_an_image_above_the_size_limits_is_shrunk_with_its_boxes(tmp_path: Path) -> None:
    box = {"label": "b", "box": [100, 50, 300, 150]}
    root = folder(tmp_path / "set", [{"image": f"{i}.png", "caption": "x", "boxes": [box]} for i in (8, 9)])
    (root / "8.png").write_bytes(encoded(size=(400, 200)))
    (root / "9.png").write_bytes(encoded(size=(320, 160)))
    _, rows, _ = run(root, tmp_path / "out", max_side=320, columns={"boxes": "boxes"})
    assert [(row["width"], row["height"]) for row in rows] == [(320, 160)] * 2
    assert [rows[0]["regions"][0][corner] for corner in ("x0", "y0", "x1", "y1")] == [80, 40, 240, 120]
    assert rows[1]["image"]["bytes"] == (root / "9.png").read_bytes()  # as it came
    assert rows[0]["image"]["bytes"] != (root / "8.png").read_bytes()
    small, same = examine([encoded(size=(400, 200)), encoded()], SizeLimits(max_bytes=5000))
    assert isinstance(small, DecodedImage) and len(small.encoded) <= 5000 < len(encoded(size=(400, 200)))
    assert small.original_size == (400, 200) and Image.open(io.BytesIO(small.encoded)).size == small.size
    assert isinstance(same, DecodedImage) and same.encoded == encoded()


def test_the_limit_of_pixels_is_checked_at_the_scale_that_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    large = saved(Image.fromarray(HALVES).resize((640, 320)), "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 640 * 320 // 8)
    with pytest.raises(RecordError, match=r"too many pixels: 640×320 .* set ingest.max_side"):
        decode_and_shrink(large, SizeLimits())
    shrunk = decode_and_shrink(large, SizeLimits(max_side=160))
    assert (shrunk.original_size, shrunk.size) == ((640, 320), (160, 80))
    assert near(decode(shrunk.encoded), (4, 8), (255, 0, 0)) and near(decode(shrunk.encoded), (150, 8), (0, 0, 255))
    with pytest.raises(RecordError, match=r"too many pixels: .*; make it smaller"):
        decode_and_shrink(saved(Image.new("RGB", (640, 320)), "PNG"), SizeLimits(max_side=160))
    with pytest.raises(RecordError, match="too many pixels"):
        read_size(large)
    with pytest.raises(Image.DecompressionBombError):
        decode(large)


@pytest.mark.parametrize("form", ["TGA", "PSD"])
def test_formats_of_drawing_programs(form: str) -> None:
    data = saved(Image.fromarray(HALVES), "TGA") if form == "TGA" else psd(HALVES)
    assert read_size(data) == (32, 16)
    assert near(decode(data), (4, 8), (255, 0, 0)) and near(decode(data), (28, 8), (0, 0, 255))


def psd(pixels: np.ndarray) -> bytes:
    """A PSD file without layers. Source: Adobe Photoshop File Formats Specification."""
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, *pixels.shape[:2], 8, 3)
    return header + struct.pack(">IIIH", 0, 0, 0, 0) + pixels.transpose(2, 0, 1).tobytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
        (b"<html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
        (b"nonsense", "none of the formats JPEG, PNG"),
        (b"\xd7\xcd\xc6\x9a" + bytes(90), "none of the formats"),
    ],
)
def test_other_files_are_refused_everywhere_by_what_they_are(data: bytes, reason: str) -> None:
    with pytest.raises(RecordError, match=f"not an image: .*{reason}"):
        read_size(data)
    with pytest.raises(UnidentifiedImageError):
        decode(data)
    with pytest.raises(ValueError, match=f"not an image: .*{reason}"):
        ImageReader(at_least=1).read(data)
    assert "UnidentifiedImageError" in read_thumbnail(data).reason


def test_an_image_may_be_bare_base64() -> None:
    data = saved(Image.fromarray(HALVES), "JPEG")
    assert resolve(base64.b64encode(data).decode()) == data
    for name in (f"{'x' * 300}.jpg", "images/0001", f"{'x' * 300}_"):
        assert resolve(name) == name


def test_images_are_opened_in_one_place() -> None:
    """The list of formats holds only where `open_image` is used."""
    root = Path(__file__).parents[2]
    files = [file for folder in ("vlmflow", "components", "pipelines") for file in (root / folder).rglob("*.py")]
    assert [file.name for file in files if "Image.open(" in file.read_text("utf-8")] == ["decoding.py"]


def test_the_number_of_workers_does_not_change_the_result() -> None:
    things = [*originals(), *strangers()[:6], *(one[:60] for one in originals())]
    one, three = ([getattr(found, "size", str(found)) for found in examine(things, count=n)] for n in (1, 3))
    assert one == three


def test_a_decoder_that_hangs_or_crashes_loses_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A progressive JPEG may repeat its scans without end, each as costly as the picture: a few MB, minutes."""
    flat = saved(Image.new("L", (8000, 8000)), "JPEG", progressive=True, quality=30)
    scans = [at for at in range(len(flat) - 1) if flat[at : at + 2] == b"\xff\xda"]
    hostile = flat[: scans[-1]] + flat[scans[-1] : -2] * 3000 + flat[-2:]
    monkeypatch.setattr("components.ingest.sandboxed_decoder.TIMEOUT_SECONDS", 3)
    good = encoded()
    found = examine([good, hostile, good, b"", good], count=1)
    assert [getattr(one, "kind", "") for one in found] == ["", "decoding timeout", "", "not an image", ""]


# ------------------------------------------------------------------------------------------------ damaged files


@cache
def originals() -> list[bytes]:
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    smooth = rgb.resize((8, 6)).resize((64, 48))
    frames = {"save_all": True, "append_images": [rgb]}
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return [
        saved(smooth, "JPEG"), saved(rgb, "JPEG", progressive=True, icc_profile=icc),
        saved(smooth.convert("CMYK"), "JPEG"),
        saved(rgb, "PNG"), saved(smooth.quantize(16), "PNG"), saved(rgb, "PNG", **frames), saved(rgb, "GIF", **frames),
        saved(rgb, "WEBP"), saved(rgb, "WEBP", lossless=True, **frames), saved(rgb, "BMP"), saved(rgb, "TIFF"),
        saved(rgb, "TIFF", compression="tiff_lzw"), saved(rgb, "TIFF", compression="jpeg"), saved(rgb, "PPM"),
        saved(rgb, "ICO"), saved(rgb, "JPEG2000"), saved(rgb, "AVIF"), saved(rgb, "MPO", **frames),
    ]  # fmt: skip


def bombs() -> list[bytes]:
    def png(width: int, height: int, content: bytes, *more: bytes) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + b"".join(more)
            + chunk(b"IDAT", content)
            + chunk(b"IEND", b"")
        )

    zeros = zlib.compress(bytes(2**26), 9)
    text = chunk(b"zTXt", b"a\0\0" + zeros)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(2**24))
    huge = [png(w, h, zeros) for w, h in ((30000, 30000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (9400, 9400), (0, 0))]
    gif, bmp = bytearray(originals()[6]), bytearray(originals()[9])
    gif[6:10], bmp[18:26] = struct.pack("<HH", 65535, 65535), struct.pack("<ii", 2**30, -(2**31))
    return [*huge, png(8, 8, zeros, text), png(8, 8, zeros), bytes(gif), bytes(bmp), gzip.compress(bytes(2**24)),
            archive.getvalue()]  # fmt: skip


def strangers() -> list[bytes]:
    return [
        b"", b"\0", b"<html><body>404</body></html>", b'{"error": "gone"}', b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        b"MZ" + bytes(500), b"\x7fELF" + bytes(500), b"PK\3\4" + bytes(200), b"#!/bin/sh\nexit 0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"RIFF\x24\0\0\0WAVEfmt ", b"ID3" + bytes(300), b"OggS" + bytes(99), b"\0\0\0\x18ftypmp42" + bytes(99),
        "кот".encode("utf-16"), bytes(range(256)) * 40, b"\xff\xd8\xff", b"GIF89a", b"BM", b"\xff\xd8\xff\xd9",
        b"II*\0\x08\0\0\0" + b"\xff" * 90, b"MM\0*" + bytes(60), b"P6 9999999 9999999 255\n",
        b"\xd7\xcd\xc6\x9a" + bytes(90), b"\x89PNG\r\n\x1a\n", b"\0\0\1\0\1\0" + b"\xff" * 40,
        b"version https://git-lfs.github.com/spec/v1\n",
    ]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    content = bytearray(data)
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(content[: rng.randrange(len(content))])
    if kind == 1:
        for _ in range(rng.randrange(1, 20)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for _ in range(4):
            content[rng.randrange(min(64, len(content)))] = rng.randrange(256)
    elif kind == 3:
        at = rng.randrange(len(content))
        content[at : at + 64] = rng.randbytes(rng.randrange(128))
    elif kind == 4:
        return rng.choice(originals())[:32] + bytes(content[32:])
    else:
        content += rng.randbytes(200)
    return bytes(content)


@pytest.mark.filterwarnings("default")
def test_each_of_600_damaged_files_is_kept_or_quarantined(tmp_path: Path) -> None:
    rng = random.Random(7)
    whole = originals()
    files = [*whole, *bombs(), *strangers()]
    files += [damaged(rng.choice(whole), rng) for _ in range(600 - len(files))]
    root = tmp_path / "set"
    root.mkdir()
    for i, content in enumerate(files):
        (root / f"{i}.jpg").write_bytes(content)
    rows = [{"image": f"{i}.jpg", "caption": f"number {i}"} for i in range(len(files))]
    (root / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    written, kept, entries = run(root, tmp_path / "out", max_quarantined=1.0)

    names = [row["source"].removeprefix("set/") for row in kept] + [entry["image"] for entry in entries]
    assert sorted(names) == sorted(f"{i}.jpg" for i in range(600))
    assert written.card.notes["rows_read"] == 600
    assert {f"set/{i}.jpg" for i in range(len(whole))} <= {row["source"] for row in kept}
    strange = {f"{i}.jpg" for i in range(len(whole), len(whole) + len(bombs()) + len(strangers()))}
    refused = {entry["image"]: entry["reason"] for entry in entries}
    assert len(strange - refused.keys()) <= 2, strange - refused.keys()  # more pixels than it says decode, and 9400²
    assert all(reason.strip() for reason in refused.values()) and len(refused) > 250
    warnings.simplefilter("ignore")  # of metadata that Pillow can do without
    for row in kept:  # what is kept decodes, whatever was done to it
        assert decode(row["image"]["bytes"]).size == (row["width"], row["height"])
