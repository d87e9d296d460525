"""Captions: what is left of one when the junk is taken away, and whether that says anything."""

import re
from collections import Counter
from dataclasses import dataclass

LOOK = 2000  # characters; what a longer text begins with is judged
MIN_SHARE = 0.5  # of a caption's characters that must be left
MAX_REPEAT = 0.6  # share of one letter, or one word, from which a caption says nothing but that

_FORMATS = "jpe?g|png|gif|bmp|tiff?|webp|svg|heic|avif|ico|raw|cr2|nef|dng|psd|pdf|mp4|mov"
_CAMERA = "img|image|dsc|dscn|dscf|dcim|pict|mvi|vid|gopr|cimg|kimg|sam|screenshot|scan|photo|pxl|fb_img|wp|imag"

# Taken away in this order, wherever they stand in the caption. Each takes whole tokens, so that "R2D2" and
# "IMG academy" stay.
_JUNK: dict[str, re.Pattern[str]] = {
    "markup": re.compile(r"<!--.*?-->|</?[a-z][^<>]*>|&(?:[a-z]{2,8}|#\d{1,6}|#x[0-9a-f]{1,6});", re.I | re.S),
    "URL": re.compile(
        r"\b(?:https?|ftp|file)://\S+|\bdata:\w+/\S+|\bwww\.\S+|(?<![\w.-])[\w-]+(?:\.[\w-]+)*\.[a-z]{2,6}/\S+"
        r"|^[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|io)$",
        re.I,
    ),
    "e-mail": re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+"),
    "file name": re.compile(
        rf"(?<!\S)\S+\.(?:{_FORMATS})(?!\w)|(?<!\w)(?:{_CAMERA})[-_]?\d{{3,}}(?:[-_~]\w+)*(?!\w)|(?<!\w)p\d{{7}}(?!\w)",
        re.I,
    ),
    "identifier": re.compile(
        r"(?<![\w-])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![\w-])|(?<!\w)(?=\w*\d)(?=\w*[a-f])[0-9a-f]{8,}(?!\w)"
        r"|(?<!\w)\d{8}[-_]\d{4,}(?!\w)",
        re.I,
    ),
}

_NAMES = "image|photo|photograph|picture|pic|img|figure|fig|slide|page|thumbnail|thumb|icon|logo|screenshot|graphic"
# The whole of what is left, never a part of it: "logo of a bank" is a caption.
_BOILERPLATE = re.compile(
    r"(?:an? |the |this |my |main |product |featured |cover |gallery |profile |stock |header |preview |default |full )*"
    rf"(?:{_NAMES})s?(?: (?:no|number|of|#)\.?)?(?: ?[\d#(]+(?: ?(?:of|/) ?\d+)?\)?)?"
    r"|(?:royalty[- ]free|free|stock|vector)(?: (?:royalty[- ]free|free|stock|vector))*"
    rf"(?: (?:{_NAMES}|art|clipart|illustration|vector|footage)s?)*"
    rf"|(?:please )?(?:click|tap)(?: (?:\d+|here|to|for|on|the|this|a|{_NAMES}|enlarge|zoom|view|see|open|expand|full"
    r"|larger?|bigger|size|version|more|info|details))*"
    rf"|(?:view|see|show|open|enlarge|zoom|expand|read|learn)(?: (?:in|out|the|this|a|{_NAMES}|full|larger?|bigger|size"
    r"|version|more|all|info|information|details|to|about|here))+|(?:enlarge|zoom)"
    r"|(?:buy|shop|order|download|subscribe|sign up|log in|read|register)(?: now| here| today| online)+"
    r"|add to (?:cart|bag)"
    rf"|(?:no|missing|without) (?:{_NAMES}|caption|alt(?: text)?|description|title|text)(?: available| yet| found)?"
    rf"|(?:{_NAMES}|caption|description|photo) (?:is )?(?:not available|unavailable|coming soon|not found|missing|here)"
    r"|coming soon|not available|alt(?: text)?|image alt(?: text)?|caption|description|title|untitled(?: \d+)?|unnamed"
    r"|placeholder(?: image| text)?|lorem ipsum.*|default|null|none|nil|nan|n/?a|undefined|unknown|unspecified|todo|tbd"
    r"|test(?: ?\d+)?|loading|advertisement|advert|sponsored|(?:copyright )?all rights reserved|copyright \d{4}.{0,20}",
    re.I,
)
# Chinese, Japanese and Korean: a letter is a syllable or a word.
WIDE = re.compile(r"[\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")


@dataclass(frozen=True, kw_only=True)
class Junk:
    """Why a caption is of no use: what was measured, and the least that would do."""

    reason: str
    value: float
    threshold: float


def junk(caption: str | None, *, min_words: int = 1, min_characters: int = 2) -> Junk | None:
    """The finding for one caption, or None where it is worth learning from.

    Markup, URLs, file names and identifiers are taken away first; the rest is judged. Of a long text, the start.

    Args:
        caption: any text; None reads as empty.
        min_words: the least number of words left; text without spaces (Chinese, Japanese) counts each
            letter as a word.
        min_characters: the least number of letters left; a Chinese, Japanese or Korean letter counts as two.
    """
    text = " ".join((caption or "")[:LOOK].split())
    if not text:
        return Junk(reason="empty", value=0, threshold=min_characters)
    rest, found = text, []
    for name, pattern in _JUNK.items():
        rest, times = pattern.subn(" ", rest)
        found += [name] * bool(times)
    rest = " ".join(rest.split())
    count, letters = words(rest), _letters(rest)
    if letters < min_characters:
        return Junk(reason=" and ".join(found) or "digits and symbols only", value=letters, threshold=min_characters)
    if found and len(rest) < MIN_SHARE * len(text):
        return Junk(reason=f"mostly {' and '.join(found)}", value=len(rest) / len(text), threshold=MIN_SHARE)
    if _BOILERPLATE.fullmatch(rest.strip(" .,:;!?-–—_*|[](){}<>«»\"'")):
        return Junk(reason="boilerplate", value=0, threshold=min_words)
    if count < min_words:
        return Junk(reason="too few words", value=count, threshold=min_words)
    share = _repetition(rest)
    if share > MAX_REPEAT:
        return Junk(reason="one letter or word repeated", value=share, threshold=MAX_REPEAT)
    return None


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text)) + len(WIDE.findall(text))


def words(text: str) -> int:
    """How many words there are; of a script without spaces each letter counts as one."""
    return sum(max(1, len(WIDE.findall(word))) for word in text.split() if any(map(str.isalpha, word)))


def _repetition(text: str) -> float:
    """The share of the commonest letter (of five or more), or of the commonest word (of four or more)."""
    letters = [letter for letter in text.lower() if letter.isalpha()]
    tokens = text.lower().split()
    shares = [0.0]
    if len(letters) >= 5:
        shares.append(Counter(letters).most_common(1)[0][1] / len(letters))
    if len(tokens) >= 4:
        shares.append(Counter(tokens).most_common(1)[0][1] / len(tokens))
    return max(shares)
