"""The images of a request: allowed formats, budgets, orientation, and boxes in pixels of the image as sent."""

import base64
import io
import random
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.serving.conftest import encode
from vlmflow.images import boxes
from vlmflow.inference import generation
from vlmflow.serving import answering, request_images
from vlmflow.serving.predictor import Predictor
from vlmflow.serving.request_images import ImageReader

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%BeginPreview\nshowpage\n%%EOF"
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM", "ICO", "TGA", "DDS", "PCX", "SGI", "EPS")


def mutations() -> Iterator[bytes]:
    """Images of many formats with bytes changed, dropped or repeated, from a fixed seed."""
    rng = random.Random(0)
    for form in FORMATS:
        buffer = io.BytesIO()
        Image.effect_noise((16, 16), 90).convert("RGB").save(buffer, form)
        for _ in range(40):
            data = bytearray(buffer.getvalue())
            for _ in range(rng.randint(1, 4)):
                place = rng.randrange(min(len(data), 200))
                match rng.randrange(3):
                    case 0:
                        data[place] = rng.randrange(256)
                    case 1:
                        del data[place : place + rng.randrange(30)]
                    case 2:
                        data[place:place] = data[place : place + 8] * 3
            yield bytes(data)


def test_a_damaged_image_is_a_user_error() -> None:
    """Never another exception, whatever Pillow raises."""
    outcomes = []
    for data in mutations():
        try:
            outcomes.append(ImageReader(32).read(data).pixels.mode)
        except ValueError as error:
            outcomes.append(str(error).split(":")[0])
    assert set(outcomes) == {"RGB", "image"}


@pytest.mark.parametrize("data", [EPS, b"BLP2" + bytes(200), b"DDS " + bytes(200), b"<svg/>", b"%PDF-1.7"])
def test_formats_that_ingest_does_not_read_are_rejected(data: bytes) -> None:
    with pytest.raises(ValueError, match="image: not an image"):
        ImageReader(32).read(data)


def test_the_pixels_of_an_image_and_of_a_request_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, image = ImageReader(32, budget=10_000), encode(Image.new("1", (60, 70)))
    reader.read(image)
    reader.read(image)
    with pytest.raises(ValueError, match="more than 10,000 pixels"):
        reader.read(image)
    monkeypatch.setattr(request_images, "MAX_IMAGE_PIXELS", 4_000)
    with pytest.raises(ValueError, match="60×70 pixels; at most 4,000"):
        ImageReader(32).read(image)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_large_image_is_reduced_and_keeps_its_size_as_sent(form: str) -> None:
    found = ImageReader(at_least=64).read(encode(Image.new("RGB", (900, 330), "red"), form))
    assert (found.width, found.height) == (900, 330) and min(found.pixels.size) in range(64, 128)


def test_boxes_are_in_pixels_of_the_image_as_sent(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def generate(_: object, images: list[Image.Image], prompts: list[str], **__: object) -> list[generation.Answer]:
        seen.extend(prompts)
        return [generation.Answer("at <loc00><loc16><loc31><loc63> and <loc32><loc32><loc63><loc63>", 1, 2, True)]

    monkeypatch.setattr(generation, "generate", generate)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: viewers show 640 × 1280 pixels
    image = encode(Image.new("RGB", (1280, 640)), "JPEG", exif=exif)
    (answer,) = answering.answer_prompts(
        predictor.loaded,
        [(image, "what is in <box>0,320,320,640</box>?")],
        answering.image_reader(predictor.loaded),
        max_new_tokens=4,
    )
    assert seen == ["what is in <loc00><loc16><loc32><loc32>?"]
    assert answer.text == "at <box>5,330,315,1270</box> and <box>325,650,635,1270</box>"


@pytest.mark.parametrize("convention", sorted(boxes.CODECS))
def test_every_box_of_an_answer_becomes_pixels(convention: str) -> None:
    given = [boxes.Box(10, 20, 300, 400, 640, 480), boxes.Box(0, 0, 639, 479, 640, 480)]
    text = "a {} b {} c".format(*(boxes.CODECS[convention].encode(box) for box in given))
    found = boxes.CANONICAL.findall(boxes.to_pixels(text, convention, 640, 480))
    for box, corners in zip(given, found, strict=True):
        for expected, corner in zip((box.x0, box.y0, box.x1, box.y1), map(float, corners), strict=True):
            assert abs(expected - corner) <= boxes.CODECS[convention].max_error * 640 + 0.01


def test_base64_and_data_uris_are_read() -> None:
    image = encode(Image.new("RGB", (4, 4), "red"))
    for value in (image, {"b64": image}, f"data:image/png;base64,{image}", base64.b64decode(image)):
        assert ImageReader(32).read(value).pixels.getpixel((0, 0)) == (255, 0, 0)
