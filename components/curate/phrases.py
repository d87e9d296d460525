"""Words and phrases in captions: normalization, lists of phrases in files, and their occurrences in a caption."""

import re
import unicodedata
from pathlib import Path

from vlmflow.artifacts.text_files import read_lines
from vlmflow.errors import DataError


def normalize_caption(caption: str) -> str:
    """Return the caption in lower case, without punctuation, with single spaces (NFKC, any script).

    Two captions count as equal if their normalized texts are.
    """
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", caption).casefold()))


def load_phrases(path: str, key: str, *, comment: str | None = None) -> frozenset[str]:
    """Read a file with one word or phrase per line, and normalize each.

    Args:
        path: a UTF-8 text file. key: the recipe key that names it, for error messages.
        comment: lines that start with this are skipped.

    Raises:
        DataError: the file cannot be read, or contains no word.
    """
    try:
        lines = read_lines(Path(path))
    except DataError as error:
        raise DataError(f"{key} {error}; use a text file with one word or phrase per line") from None
    phrases = {normalize_caption(line) for line in lines if comment is None or not line.startswith(comment)} - {""}
    if not phrases:
        raise DataError(f"{key} {path}: contains no word; use a text file with one word or phrase per line")
    return frozenset(phrases)


def find_phrases(caption: str, phrases: frozenset[str]) -> set[str]:
    """Return those of the normalized `phrases` that occur in the caption as whole words."""
    words = normalize_caption(caption).split()
    longest = max((phrase.count(" ") + 1 for phrase in phrases), default=0)
    spans = (" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))
    return {span for span in spans if span in phrases}
