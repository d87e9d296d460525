"""Caption rules: what each of them finds in a caption, and the redaction of personal data (PII).

`check_caption` applies the rules to one caption in the order of the ledger and stops at the first that fails.
"""

import re
from dataclasses import dataclass
from functools import cache

from components.curate import caption_cleaning, language
from components.curate.config import CurateConfig
from components.curate.phrases import find_phrases, load_phrases, normalize_caption

# Words that relate two things to each other. `and`, `or` and articles do not.
_RELATING = """
    about above across after against along alongside amid among around at atop before behind below beneath beside
    besides between beyond by down during facing for from in inside into like near of off on onto opposite out
    outside over past through throughout to toward towards under underneath until up upon via with within without
    has have had having is are was were be being contains contain containing includes include including shows show
    showing depicts depict depicting wears wear wearing holds hold holding carries carry carrying rides ride riding
    stands stand sits sit lies lie walks walk runs run plays play looks look eats eat hangs hang covers cover"""
_NOT_CONTENT = """
    a an the this that these those and or but nor so as than then there here it its his her their our your my he she
    they we you i who whom whose which what some any each every no not one
    front top next back middle"""
_RELATIONS = frozenset(_RELATING.split())
_FUNCTION = _RELATIONS | frozenset(_NOT_CONTENT.split())
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[a-z]{2,}(?![\w@])", re.I)
# A telephone number has an international prefix, an area code in parentheses, three groups as in North America, or any
# form after a word such as "phone". Dates, prices, ISBNs, sizes and part numbers have none of these.
_NUMBER = r"\(?\d[\d ().\-/\u2010-\u2013\u00a0]{5,22}\d(?![\w-])"
_PHONE = re.compile(
    rf"(?<![\w+])\+{_NUMBER}"
    r"|(?<![\w.-])(?:1[ .-])?\(\d{3}\)[ .-]?\d{3}[ .-]?\d{4}(?![\w-])"
    r"|(?<![\w.#/-])(?:1[ .-])?[2-9]\d{2}([.-])[2-9]\d{2}\1\d{4}(?![\w-])"
    rf"|(?<!\w)(?:(?:tele)?phone|tel|call|text|mobile|cell|fax|whatsapp)(?: us| me| now)?(?: on| at)?[.:]? ?{_NUMBER}",
    re.I,
)
_DIGITS = range(7, 16)  # digits of a telephone number; ITU-T E.164 allows at most 15


@dataclass(frozen=True, kw_only=True)
class CaptionFinding:
    """Why a caption is unusable: the rule that failed, the reason, the measured value and the threshold."""

    rule: str
    reason: str
    value: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class CaptionVerdict:
    """The outcome of all rules for one caption."""

    finding: CaptionFinding | None = None
    pii: tuple[str, ...] = ()  # kinds of personal data: e-mail, phone
    rewritten: str | None = None  # the caption without personal data, where `pii` is `remove`
    undecided_language: bool = False  # the caption is kept, but its language was not recognized


def check_caption(caption: str | None, config: CurateConfig) -> CaptionVerdict:
    """Apply the caption rules; with `pii: remove` they see the caption without its personal data."""
    pii: tuple[str, ...] = ()
    rewritten = None
    if config.pii != "ignore":
        redacted, pii = redact_pii(caption or "")
        if pii and config.pii == "remove":
            rewritten = caption = redacted
    judged = language.judge(caption or "", config.languages) if config.languages else None
    return CaptionVerdict(
        finding=_first_finding(caption, pii, judged, config),
        pii=pii,
        rewritten=rewritten,
        undecided_language=judged is not None and judged.probability is None,
    )


def _first_finding(
    caption: str | None, pii: tuple[str, ...], judged: language.Judgement | None, config: CurateConfig
) -> CaptionFinding | None:
    junk = caption_cleaning.find_junk(caption, min_words=config.min_words, min_characters=config.min_characters)
    if junk:
        return CaptionFinding(rule="junk_text", reason=junk.reason, value=junk.value, threshold=junk.threshold)
    text = caption or ""
    if config.max_words is not None and (count := caption_cleaning.count_words(text)) > config.max_words:
        return CaptionFinding(rule="caption_too_long", reason="too many words", value=count, threshold=config.max_words)
    if judged and judged.probability is not None and judged.probability < config.min_language:
        reason = f"not {' or '.join(config.languages)}, but {judged.found}"
        value, threshold = judged.probability, config.min_language
        return CaptionFinding(rule="language", reason=reason, value=value, threshold=threshold)
    if config.min_relations and (count := count_relations(text)) < config.min_relations:
        reason = "too few relations between things"
        return CaptionFinding(rule="low_complexity", reason=reason, value=count, threshold=config.min_relations)
    if config.blocklist and (count := count_blocklisted(text, load_blocklist(config.blocklist))):
        return CaptionFinding(rule="blocklist", reason="contains a blocklisted phrase", value=count, threshold=0)
    if pii and config.pii == "drop":
        return CaptionFinding(rule="pii", reason=" and ".join(pii), value=len(pii), threshold=0)
    return None


def count_relations(caption: str) -> int:
    """Count the relations that the caption states: relating words between two content words.

    Instead of a parser this uses closed lists of English prepositions and of frequent verbs of captions. Any word in
    -ing counts as relating too. "a dog on a sofa" has one relation; "dog sofa", "a small red dog" and "apples and
    pears" have none. "a wedding ring" counts as one, though a parser would find none.

    Source: Radenovic et al. 2023, "Filtering, distillation and hard negatives", section 3.1 (complexity), which uses
    a parser.
    """
    words = _WORD.findall(caption.lower())
    is_content = [word not in _FUNCTION for word in words]
    count, pending = 0, False
    has_content_before = False
    for number, word in enumerate(words):
        relates = word in _RELATIONS or (len(word) > 5 and word.endswith("ing") and number > 0)
        if relates and has_content_before:
            pending = True
        elif is_content[number]:
            count += pending
            has_content_before, pending = True, False
    return count


def count_blocklisted(caption: str, blocklist: frozenset[str]) -> int:
    """Count the blocklisted words and phrases in the caption, as whole words, ignoring case.

    In Chinese, Japanese and Korean, which have no spaces, an entry counts wherever it occurs.
    """
    found = find_phrases(caption, blocklist)
    joined = normalize_caption(caption).replace(" ", "")
    if not joined.isascii():
        found |= {
            entry for entry in blocklist if caption_cleaning.WIDE.search(entry) and entry.replace(" ", "") in joined
        }
    return len(found)


@cache
def load_blocklist(paths: tuple[str, ...]) -> frozenset[str]:
    """Return the normalized entries of text files with one word or phrase per line; `#` starts a comment line.

    Raises:
        DataError: a file cannot be read, or contains no word.
    """
    return frozenset[str]().union(*(load_phrases(path, "blocklist", comment="#") for path in paths))


def redact_pii(caption: str) -> tuple[str, tuple[str, ...]]:
    """Return the caption without e-mail addresses and telephone numbers, and which of the two it contained."""
    kinds = []
    text, count = _EMAIL.subn(" ", caption)
    if count:
        kinds.append("e-mail")
    has_phone = False

    def redact(match: re.Match[str]) -> str:
        nonlocal has_phone
        if sum(map(str.isdigit, match[0])) not in _DIGITS:
            return match[0]
        has_phone = True
        return " "

    text = _PHONE.sub(redact, text)
    if has_phone:
        kinds.append("phone")
    return (" ".join(text.split()), tuple(kinds)) if kinds else (caption, ())
