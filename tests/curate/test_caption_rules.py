"""The caption rules, on captions with known outcomes and, if the shared data is present, on real captions."""

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from components.curate import language
from components.curate.caption_rules import (
    check_caption,
    count_blocklisted,
    count_relations,
    load_blocklist,
    redact_pii,
)
from components.curate.config import CurateConfig
from components.curate.phrases import normalize_caption
from tests.conftest import SHARED
from vlmflow.config.recipes import load
from vlmflow.errors import DataError, RecipeError

ENGLISH = [
    "a red circle on a white ground", "a black cat on a wall", "a big house by the river", "a man riding a bicycle",
    "the dog is in the grass", "two dogs playing in the park", "a cat sitting on a sofa", "sunset by the sea",
    "a woman is reading a book", "a child with a kite at the beach", "the old church in the village", "a bowl of soup",
    "people waiting for the bus", "a street at night in the rain", "an apple and a pear on the table",
]  # fmt: skip
OTHERS = [
    "ein roter Kreis auf weißem Grund", "un chat noir sur un mur", "una casa grande junto al río",
    "um homem andando de bicicleta", "een hond in het gras", "две собаки играют в парке", "一只猫坐在沙发上",
    "海辺の夕日", "여자가 책을 읽고 있다", "رجل يركب حصانا", "kadın ve çocuk parkta", "kobieta z parasolem na ulicy",
    "en man med en hund på stranden", "il gatto dorme sul tavolo", "một con mèo trên bàn", "maison à vendre",
    "zapatos de mujer baratos", "Hochzeitskleid kaufen", "hotel em Lisboa com piscina", "Rezept für Apfelkuchen",
]  # fmt: skip
PHONES = [
    "call +44 20 7946 0958 now", "+1 (555) 123-4567", "Computer repair 402-505-6600", "(402) 505-6600 open daily",
    "book at +49 30 901820", "Tel: 020 7946 0958", "tel. 030/901820", "WhatsApp 0712 345 678", "fax 555 0123 99",
    "phone: 1-800-555-0199", "plumber 402.505.6600", "call us on 01632 960 983", "+30 697 435 0179 reservations",
]  # fmt: skip
NO_PHONES = [
    "the 1939-1945 war", "born 12/03/1985 in Rome", "ISBN 978-3-16-148410-0", "Canon EOS 5D 24-105 mm", "10 000 people",
    "price 1,299,000 dollars", "MLS #21679297", "lot 101403863", "2x 76x127mm (Pack of 12) 655-12", "p. 123-456",
    "iPhone 6 2014-2015 case", "version 10.0.19041.1", "120 + 1500 m relay", "3 4 5 6 7 8 9 10 cards", "call 911",
    "49.2827 N 123.1207 W", "10-20-30-40 countdown", "Boeing 747-400 in 2010", "1994 1995 1996-2003 throttle tube",
]  # fmt: skip
EMAILS = ["write to jo.doe+x@example.co.uk", "jo@example.org", "(jo@example.org)", "mail:jo_d@sub.example.com!"]
NO_EMAILS = ["@home with us", "meet @ 5 pm", "a@b", "user@localhost", "C@T"]


def rules(**values: object) -> CurateConfig:
    return load(CurateConfig, {"curate": values}, "curate")


def test_english_is_distinguished_from_other_languages() -> None:
    section = rules(languages=["en"])
    assert all(check_caption(caption, section).finding is None for caption in ENGLISH)
    for caption in OTHERS:
        finding = check_caption(caption, section).finding
        assert finding is not None and finding.rule == "language" and finding.value < finding.threshold
    both = rules(languages=["de", "fr"])
    assert check_caption(OTHERS[0], both).finding is None and check_caption(OTHERS[1], both).finding is None
    assert check_caption(ENGLISH[4], both).finding is not None


def test_capital_letters_do_not_change_the_language() -> None:
    assert all(language.judge(text.upper(), ("en",)) == language.judge(text, ("en",)) for text in ENGLISH)


@pytest.mark.parametrize(
    ("accepted", "caption", "found"),
    [
        ("en", "风筝", "Chinese letters"),  # unseen words get the model's prior, in which English leads
        ("en", "筝", "Chinese letters"),
        ("en", "змей", "Cyrillic letters"),
        ("en", "ギター", "Katakana letters"),
        ("zh", "丘の上の赤い凧", "Chinese letters"),  # kana: Japanese
        ("de", "een rode vlieger boven de heuvel", "nl"),
        ("ru", "a kite", "Latin letters"),
    ],
)
def test_the_script_decides_before_the_model(accepted: str, caption: str, found: str) -> None:
    judged = language.judge(caption, (accepted,))
    assert judged.found == found and (judged.probability or 0) < 0.1 and judged.probability is not None


@pytest.mark.parametrize(
    ("accepted", "caption"),
    [
        ("ja", "丘の上の赤い凧"),
        ("ko", "연"),
        ("th", "ว่าว"),
        ("en", "a red kite 风筝"),
        ("en", "two dogs"),
        ("en", "风筝 kite"),
        ("de", "Straße"),
    ],
)
def test_captions_in_an_accepted_script_are_accepted(accepted: str, caption: str) -> None:
    assert (language.judge(caption, (accepted,)).probability or 0) >= 0.1


@pytest.mark.parametrize(
    ("accepted", "caption"),
    [
        ("en", "New York"),
        ("en", "IKEA Billy bookcase"),
        ("fr", "chien"),
        ("zh", "风筝"),
        ("de", "Hund"),
        ("en", "42 !"),
    ],
)
def test_an_undecided_language_is_kept_and_said(accepted: str, caption: str) -> None:
    assert language.judge(caption, (accepted,)).probability is None
    verdict = check_caption(caption, rules(languages=[accepted], min_characters=0))
    assert verdict.undecided_language and (verdict.finding is None or verdict.finding.rule != "language")


def test_every_language_of_the_model_has_a_script() -> None:
    everything = language.supported_languages()
    assert len(everything) == 176 and everything >= set(language._SCRIPTS_OF)
    assert language.judge("a dog\nin the grass", tuple(everything)).probability == 1


def test_an_unknown_language_code_is_rejected_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'enq' is not a known ISO code; the nearest is '\w+'"):
        rules(languages=["enq"])


@pytest.mark.parametrize(
    ("caption", "count"),
    [
        ("a dog on a sofa", 1),
        ("dog sofa", 0),
        ("a small red dog", 0),
        ("apples and pears", 0),
        ("a man wearing a hat in front of a house", 2),
        ("the cup is on the table", 1),
        ("on sale", 0),
        ("in the park", 0),
        ("made by", 0),
        ("A woman sits beside a river with her child.", 2),
        ("", 0),
    ],
)
def test_count_relations(caption: str, count: int) -> None:
    assert count_relations(caption) == count


def test_blocklisted_phrases_match_whole_words(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("# a comment\nass\nBad Thing\nクソ\n\n", encoding="utf-8")
    entries = load_blocklist((str(file),))
    assert len(entries) == 3
    for caption in ("an ASS!", "what a bad-thing", "ｂａｄ thing", "このクソゲーム"):
        assert count_blocklisted(caption, entries) == 1, caption
    for caption in ("a class of glass", "bad and thing", "thing bad", ""):
        assert count_blocklisted(caption, entries) == 0, caption
    finding = check_caption("an ass", rules(blocklist=[str(file)])).finding
    assert finding is not None and (finding.rule, finding.value, finding.threshold) == ("blocklist", 1, 0)
    assert "ass" not in finding.reason.split()  # the ledger does not repeat blocklisted words


def test_an_invalid_blocklist_is_rejected_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read"):
        load_blocklist((str(tmp_path / "nowhere.txt"),))
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(DataError, match=r"empty\.txt: contains no word"):
        load_blocklist((str(tmp_path / "empty.txt"),))


def test_only_personal_data_is_found() -> None:
    for kind, with_pii, clean in (("phone", PHONES, NO_PHONES), ("e-mail", EMAILS, NO_EMAILS)):
        missed = [caption for caption in with_pii if redact_pii(caption)[1] != (kind,)]
        wrong = [caption for caption in clean if redact_pii(caption) != (caption, ())]
        assert not missed and not wrong


def test_redaction_keeps_the_rest_of_the_caption() -> None:
    assert redact_pii("a boat for sale, call 555-867-5309 or jo@example.org today") == (
        "a boat for sale, or today",
        ("e-mail", "phone"),
    )


@pytest.mark.parametrize(
    ("mode", "rule", "kinds", "rewritten"),
    [
        ("ignore", None, (), None),
        ("flag", None, ("phone",), None),
        ("remove", None, ("phone",), "a boat for sale"),
        ("drop", "pii", ("phone",), None),
    ],
)
def test_pii_modes(mode: str, rule: str | None, kinds: tuple, rewritten: str | None) -> None:
    verdict = check_caption("a boat for sale 555-867-5309", rules(pii=mode))
    assert (verdict.finding and verdict.finding.rule, verdict.pii, verdict.rewritten) == (rule, kinds, rewritten)


def test_a_caption_of_only_personal_data_is_junk_after_redaction() -> None:
    finding = check_caption("jo@example.org 555-867-5309", rules(pii="remove")).finding
    assert finding is not None and finding.rule == "junk_text"


def test_captions_over_max_words_fail() -> None:
    finding = check_caption("word of many words", rules(max_words=3)).finding
    assert finding is not None and (finding.rule, finding.value, finding.threshold) == ("caption_too_long", 4, 3)
    assert check_caption("word of words", rules(max_words=3)).finding is None


def test_normalization_ignores_case_punctuation_and_width() -> None:
    assert normalize_caption("  A Red-Car, ｆａｓｔ! ") == normalize_caption("a red car fast")
    assert normalize_caption("ein Straße") == normalize_caption("EIN STRASSE")
    assert normalize_caption("a red car") != normalize_caption("a red cart")


def test_rules_are_fast_on_hostile_captions() -> None:
    section = rules(pii="remove", min_relations=1, languages=["en"])
    started = time.perf_counter()
    for text in ("+1" * 20_000, "1 " * 20_000, "tel 1" + "-1" * 20_000, "a@" * 20_000, "a.a" * 20_000, "(" * 40_000):
        check_caption(text, section)
    assert time.perf_counter() - started < 5


def test_real_captions(tmp_path: Path) -> None:
    """Web captions with hand-counted outcomes, and the alt texts of textbooks."""
    web, books = SHARED / "data" / "webtext" / "test_10000.parquet", SHARED / "data" / "textbooks" / "pairs.jsonl"
    if not web.exists() or not books.exists():
        pytest.skip(f"{SHARED} does not exist")
    texts = pq.read_table(web)["TEXT"].to_pylist()
    alts = [alt for line in books.read_text(encoding="utf-8").splitlines() if (alt := json.loads(line)["alt"])]
    section = rules(languages=["en"])
    english = [check_caption(text, section).finding for text in alts[:600]]
    assert sum(finding is not None and finding.rule == "language" for finding in english) < 0.01 * len(english)
    numbers = [text for text in texts if redact_pii(text)[1]]
    assert 2 <= len(numbers) <= 6  # 2 of 10,000 contain a telephone number, 1 more looks like one
    assert sum("402-505-6600" in text or "+30 697 435 0179" in text for text in numbers) == 2
    listed = load_blocklist((str(web.parent / "ldnoobw" / "en"),))
    held = [text for text in texts if count_blocklisted(text, listed)]
    lines = [line for line in (web.parent / "ldnoobw" / "en").read_text(encoding="utf-8").splitlines() if line]
    plain = {f" {normalize_caption(line)} " for line in lines} - {"  "}
    assert held == [
        text for text in texts if (spaced := f" {normalize_caption(text)} ") and any(one in spaced for one in plain)
    ]
