"""Junk in captions: markup, URLs, file names and boilerplate, and captions with nothing else in them."""

import re
from collections import Counter
from dataclasses import dataclass

MAX_CHARACTERS = 2000  # of a longer caption only the start is examined
MIN_SHARE = 0.5  # smallest share of a caption's characters that remains after removing junk
MAX_REPEAT = 0.6  # largest share of a single letter or word

_FORMATS = "jpe?g|png|gif|bmp|tiff?|webp|svg|heic|avif|ico|raw|cr2|nef|dng|psd|pdf|mp4|mov"
_CAMERA = "img|image|dsc|dscn|dscf|dcim|pict|mvi|vid|gopr|cimg|kimg|sam|screenshot|scan|photo|pxl|fb_img|wp|imag"

# Removed in this order, anywhere in the caption. Each matches whole tokens only, so "R2D2" and "IMG academy" remain.
_JUNK_PATTERNS: dict[str, re.Pattern[str]] = {
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
# Must match all of the remaining text, not a part of it: "logo of a bank" is a caption.
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
# Chinese, Japanese and Korean, where a character is a syllable or a word.
WIDE = re.compile(r"[\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")


@dataclass(frozen=True, kw_only=True)
class JunkFinding:
    """Why a caption is junk: the reason, the measured value and the threshold."""

    reason: str
    value: float
    threshold: float


def find_junk(caption: str | None, *, min_words: int = 1, min_characters: int = 2) -> JunkFinding | None:
    """Return why the caption is junk, or None if it is usable.

    Markup, URLs, file names and identifiers are removed first; the rules apply to the remaining text.

    Args:
        caption: any text; None counts as empty. Only its first `MAX_CHARACTERS` are examined.
        min_words: fewest words that must remain; each Chinese, Japanese or Korean character counts as a word.
        min_characters: fewest letters that must remain; a Chinese, Japanese or Korean character counts as two.
    """
    text = " ".join((caption or "")[:MAX_CHARACTERS].split())
    if not text:
        return JunkFinding(reason="empty", value=0, threshold=min_characters)
    rest, kinds = text, []
    for name, pattern in _JUNK_PATTERNS.items():
        rest, count = pattern.subn(" ", rest)
        kinds += [name] * bool(count)
    rest = " ".join(rest.split())
    words, letters = count_words(rest), _count_letters(rest)
    if letters < min_characters:
        return JunkFinding(
            reason=" and ".join(kinds) or "digits and symbols only", value=letters, threshold=min_characters
        )
    if kinds and len(rest) < MIN_SHARE * len(text):
        return JunkFinding(reason=f"mostly {' and '.join(kinds)}", value=len(rest) / len(text), threshold=MIN_SHARE)
    if _BOILERPLATE.fullmatch(rest.strip(" .,:;!?-–—_*|[](){}<>«»\"'")):
        return JunkFinding(reason="boilerplate", value=0, threshold=min_words)
    if words < min_words:
        return JunkFinding(reason="too few words", value=words, threshold=min_words)
    share = _repetition_share(rest)
    if share > MAX_REPEAT:
        return JunkFinding(reason="one letter or word repeated", value=share, threshold=MAX_REPEAT)
    return None


def _count_letters(text: str) -> int:
    return sum(map(str.isalpha, text)) + len(WIDE.findall(text))


def count_words(text: str) -> int:
    """Count the words; each Chinese, Japanese or Korean character counts as one."""
    return sum(max(1, len(WIDE.findall(word))) for word in text.split() if any(map(str.isalpha, word)))


def _repetition_share(text: str) -> float:
    """Return the share of the most frequent letter (of at least 5 letters) or word (of at least 4 words)."""
    letters = [letter for letter in text.lower() if letter.isalpha()]
    tokens = text.lower().split()
    shares = [0.0]
    if len(letters) >= 5:
        shares.append(Counter(letters).most_common(1)[0][1] / len(letters))
    if len(tokens) >= 4:
        shares.append(Counter(tokens).most_common(1)[0][1] / len(tokens))
    return max(shares)
