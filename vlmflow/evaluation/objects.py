"""Lists of objects as text, and back: the ground truth of exact match and of CHAIR."""

import re
from collections import Counter
from collections.abc import Iterable

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_VALUES = {word: value for value, word in enumerate(NUMBERS)} | {"a": 1, "an": 1}


def list_objects(categories: Iterable[str]) -> str:
    """Say what is there, in alphabetical order: `a circle, two squares and a star`."""
    parts = [_counted(category, count) for category, count in sorted(Counter(categories).items())]
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def parse(text: str, vocabulary: Iterable[str]) -> Counter[str]:
    """Count the objects of `vocabulary` that `text` names; words that name none of them are passed over."""
    forms = {form: category for category in vocabulary for form in (category, plural(category))}
    if not forms:
        return Counter()
    longest_first = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    found: Counter[str] = Counter()
    for match in re.finditer(rf"(?:\b(\w+) )?\b({longest_first})\b", text.lower()):
        found[forms[match[2]]] += _VALUES.get(match[1] or "a", 1)
    return found


def plural(word: str) -> str:
    """English plural of the regular kind."""
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def article(word: str) -> str:
    """`a` or `an`, by the first letter."""
    return "an" if word[:1] in "aeiou" else "a"


def _counted(category: str, count: int) -> str:
    if count == 1:
        return f"{article(category)} {category}"
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {plural(category)}"
