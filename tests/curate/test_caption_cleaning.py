import pytest

from components.curate.caption_cleaning import find_junk

JUNK = {
    "empty": ["", "  \n ", None],
    "file name": [
        "IMG_1234.jpg", "DSC00042.JPG", "IMG 1234.png", "DSC01234", "img_20190402_111213", "P1010101",
        "photos/2019/a-b.jpeg",
        "the-red-car_300x200.webp", "screenshot_2021-03-04.png", "C:\\Users\\me\\cat.bmp",
    ],
    "URL": ["https://example.org/p/12", "http://a.b/c?d=e", "www.shop.example", "example.com", "cdn.example.co/img/12"],
    "markup": ["<img src='12.png'>", "<br/>", "&nbsp;", "<div class=\"x\"></div>"],
    "boilerplate": [
        "click here", "Click here to enlarge", "click here 1234", "image", "Image 12", "photo 12", "Photo #3",
        "image 3 of 5",
        "stock photo", "Royalty Free Stock Photo", "Stock Photos", "untitled", "null", "N/A", "product image",
        "no image available",
        "Image not available", "view larger image", "Read more", "buy now", "thumbnail", "placeholder",
        "alt text", "- photo -",
        "Copyright 2019 Some Name", "figure 2",
    ],
    "digits and symbols": ["1234", "***", "12/03/2019 !!", "→ 3", "😀😀"],
    "identifier": ["550e8400-e29b-41d4-a716-446655440000", "a8f3c9d2e1b4", "20190402_111213"],
    "repeated": ["aaaaaaaaaa", "hahahahahahhhhhhhhh hhhhhhhhhhhh", "sale sale sale sale sale"],
    "e-mail": ["someone@example.org"],
}  # fmt: skip
USABLE = [
    "a red circle", "ox", "TV", "A button (blood type)", "1st place medal", "click here sign on a wall",
    "image of a cat",
    "photo 12 astronauts on the moon", "stock photo of a wolf", "logo of a bank", "R2D2 and C3PO",
    "the IMG academy in Florida",
    "a 3 < 4 inequality on a blackboard", "Cats & dogs", "AT&T building", "dog.com logo on a red van", "Boeing 747-400",
    "犬", "ネコ", "собака", "un café", "a page of an old book", "home", "a picture of a picture in a picture",
    "no entry", "no smoking", "view of the Alps", "read a book", "buy one get one free poster",
    "free climbing", "vector field",
    "a man wearing a default-swap T-shirt", "unknown soldier memorial", "test tube with blue liquid",
    "loading dock at night",
    "mississippi", "Mother and child, photo by J. Doe, https://example.org/1",
    "<b>A red car in front of a house</b>", "Bora Bora, Bora Bora Lagoon Resort", "zoom lens", "an enlarged heart",
]  # fmt: skip


@pytest.mark.parametrize(("reason", "caption"), [(r, c) for r, captions in JUNK.items() for c in captions])
def test_junk_is_found_with_its_reason(reason: str, caption: str | None) -> None:
    finding = find_junk(caption)
    assert finding is not None and reason in finding.reason


@pytest.mark.parametrize("caption", USABLE)
def test_usable_captions_are_not_junk(caption: str) -> None:
    assert find_junk(caption) is None


def test_min_words_count_words_after_cleaning() -> None:
    finding = find_junk("a dog 12345", min_words=3)
    assert finding is not None and (finding.reason, finding.value, finding.threshold) == ("too few words", 2, 3)


def test_patterns_do_not_backtrack_on_long_hostile_text() -> None:
    for text in (
        "<" * 50_000,
        "a." * 20_000,
        "-" * 50_000,
        "&" * 50_000,
        "click here " * 5_000,
        "a/" * 20_000,
        "x@" * 20_000,
    ):
        find_junk(text)  # a pattern that backtracks would not finish
