"""Captions: what each rule of text has against one, and what is left of it when personal data is taken away.

Every function takes one caption and says what it measured; `judge` asks them in the ledger's order and stops
at the first that fails.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from components.curate import caption_cleaning, language
from vlmflow.errors import DataError

if TYPE_CHECKING:
    from components.curate.config import CurateConfig

# Words that stand between two things and say how they are to each other. `and`, `or` and articles are none.
_RELATING = """
    about above across after against along alongside amid among around at atop before behind below beneath beside
    besides between beyond by down during facing for from in inside into like near of off on onto opposite out
    outside over past through throughout to toward towards under underneath until up upon via with within without
    has have had having is are was were be being contains contain containing includes include including shows show
    showing depicts depict depicting wears wear wearing holds hold holding carries carry carrying rides ride riding
    stands stand sits sit lies lie walks walk runs run plays play looks look eats eat hangs hang covers cover"""
_PLAIN = """
    a an the this that these those and or but nor so as than then there here it its his her their our your my he she
    they we you i who whom whose which what some any each every no not one
    front top next back middle"""
_RELATIONS = frozenset(_RELATING.split())
_FUNCTION = _RELATIONS | frozenset(_PLAIN.split())
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[a-z]{2,}(?![\w@])", re.I)
# A number that is dialled: an international prefix, a bracketed area code, three groups of the American plan, or any
# shape behind a word that announces one. Dates, prices, ISBNs, sizes and part numbers have none of these.
_NUMBER = r"\(?\d[\d ().\-/\u2010-\u2013\u00a0]{5,22}\d(?![\w-])"
_PHONE = re.compile(
    rf"(?<![\w+])\+{_NUMBER}"
    r"|(?<![\w.-])(?:1[ .-])?\(\d{3}\)[ .-]?\d{3}[ .-]?\d{4}(?![\w-])"
    r"|(?<![\w.#/-])(?:1[ .-])?[2-9]\d{2}([.-])[2-9]\d{2}\1\d{4}(?![\w-])"
    rf"|(?<!\w)(?:(?:tele)?phone|tel|call|text|mobile|cell|fax|whatsapp)(?: us| me| now)?(?: on| at)?[.:]? ?{_NUMBER}",
    re.I,
)
_DIGITS = range(7, 16)  # of a telephone number, after ITU-T E.164: at most 15


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Why a caption is of no use: the rule, what was measured, and what would have done."""

    rule: str
    reason: str
    value: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One caption, judged."""

    finding: Finding | None = None
    personal: tuple[str, ...] = ()  # kinds of personal data: e-mail, phone
    rewritten: str | None = None  # the caption without it, where the recipe removes it


def judge(caption: str | None, section: "CurateConfig") -> Judged:
    """What the recipe's rules say of a caption; personal data is removed before the others look."""
    personal: tuple[str, ...] = ()
    rewritten = None
    if section.personal_data != "ignore":
        cleaned, personal = without_personal_data(caption or "")
        if personal and section.personal_data == "remove":
            rewritten = caption = cleaned
    return Judged(finding=_finding(caption, personal, section), personal=personal, rewritten=rewritten)


def _finding(caption: str | None, personal: tuple[str, ...], section: "CurateConfig") -> Finding | None:
    junk = caption_cleaning.junk(caption, min_words=section.min_words, min_characters=section.min_characters)
    if junk:
        return Finding(rule="junk_text", reason=junk.reason, value=junk.value, threshold=junk.threshold)
    text = caption or ""
    if section.max_words is not None and (count := caption_cleaning.words(text)) > section.max_words:
        return Finding(rule="too_long", reason="too many words", value=count, threshold=section.max_words)
    if section.languages:
        share = language.probability(text, section.languages)
        if share < section.min_language:
            said = f"not {' or '.join(section.languages)}"
            return Finding(rule="language", reason=said, value=share, threshold=section.min_language)
    if section.min_relations and (count := relations(text)) < section.min_relations:
        said = "says too little of how things are to each other"
        return Finding(rule="complexity", reason=said, value=count, threshold=section.min_relations)
    if section.bad_words and (count := bad_words(text, wordlist(section.bad_words))):
        return Finding(rule="bad_words", reason="holds a listed word", value=count, threshold=0)
    if personal and section.personal_data == "drop":
        return Finding(rule="personal_data", reason=" and ".join(personal), value=len(personal), threshold=0)
    return None


def relations(caption: str) -> int:
    """How many relations the caption states: words of relation that stand between two words of content.

    A light parse, no grammar: closed lists of English prepositions and of the verbs that captions live by, and
    any word in -ing, counted where content stands on both sides. It reads "a dog on a sofa" as one relation and
    "dog sofa", "a small red dog" or "apples and pears" as none; it takes "a wedding ring" for one where a parser
    would not.

    Source: Radenovic et al. 2023, "Filtering, distillation and hard negatives", section 3.1 (complexity), whose
    parser this stands in for.
    """
    words = _WORD.findall(caption.lower())
    content = [word not in _FUNCTION for word in words]
    count, pending = 0, False
    seen = False  # content on the left
    for number, word in enumerate(words):
        relates = word in _RELATIONS or (len(word) > 5 and word.endswith("ing") and number > 0)
        if relates and seen:
            pending = True
        elif content[number]:
            count += pending
            seen, pending = True, False
    return count


def bad_words(caption: str, entries: frozenset[tuple[str, ...]]) -> int:
    """How many of the listed words and phrases the caption holds, as whole words, whatever their case.

    An entry of a script without spaces counts wherever it stands.
    """
    words = _normalised(caption)
    longest = max(map(len, entries), default=0)
    found = {
        entry
        for length in range(1, longest + 1)
        for start in range(len(words) - length + 1)
        if (entry := tuple(words[start : start + length])) in entries
    }
    joined = "".join(words)
    if not joined.isascii():
        found |= {
            entry for entry in entries if caption_cleaning.WIDE.search("".join(entry)) and "".join(entry) in joined
        }
    return len(found)


@cache
def wordlist(paths: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    """The entries of word lists: text files of one word or phrase a line; `#` begins a comment.

    Raises:
        DataError: a list that cannot be read, or one without an entry.
    """
    entries: set[tuple[str, ...]] = set()
    for path in paths:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"bad_words {path}: cannot be read: {error}; give text files of one word a line") from None
        found = {tuple(_normalised(line)) for line in lines if not line.startswith("#")} - {()}
        if not found:
            raise DataError(f"bad_words {path}: holds no word; give a text file of one word or phrase a line")
        entries |= found
    return frozenset(entries)


def without_personal_data(caption: str) -> tuple[str, tuple[str, ...]]:
    """The caption without e-mail addresses and telephone numbers, and which of the two it held."""
    found = []
    text, count = _EMAIL.subn(" ", caption)
    if count:
        found.append("e-mail")
    dialled = False

    def take(match: re.Match[str]) -> str:
        nonlocal dialled
        if sum(map(str.isdigit, match[0])) not in _DIGITS:
            return match[0]
        dialled = True
        return " "

    text = _PHONE.sub(take, text)
    if dialled:
        found.append("phone")
    return (" ".join(text.split()), tuple(found)) if found else (caption, ())


def normalised(caption: str) -> str:
    """The caption by which two captions are the same: small letters and digits of any script, single spaces."""
    return " ".join(_normalised(caption))


def _normalised(caption: str) -> list[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", caption).casefold())
