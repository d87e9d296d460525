"""Conversion between lists of objects and text, for exact match and CHAIR."""

import re
from collections import Counter
from collections.abc import Iterable

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_VALUES = {word: value for value, word in enumerate(NUMBERS)} | {"a": 1, "an": 1}


def list_objects(categories: Iterable[str]) -> str:
    """Write a list of objects in alphabetical order: `a circle, a star and two squares`."""
    return join([_counted(category, count) for category, count in sorted(Counter(categories).items())])


def join(names: list[str]) -> str:
    """Write a list: `a, b and c`."""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)


def parse(text: str, vocabulary: Iterable[str]) -> Counter[str]:
    """Count the objects of `vocabulary` that `text` names; all other words are ignored."""
    forms = {form: category for category in vocabulary for form in (category, plural(category))}
    if not forms:
        return Counter()
    longest_first = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    counts: Counter[str] = Counter()
    for match in re.finditer(rf"(?:\b(\w+) )?\b({longest_first})\b", text.lower()):
        counts[forms[match[2]]] += _VALUES.get(match[1] or "a", 1)
    return counts


def plural(word: str) -> str:
    """Regular English plural."""
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def article(word: str) -> str:
    """`a` or `an`, by the first letter."""
    return "an" if word[:1] in "aeiou" else "a"


def _counted(category: str, count: int) -> str:
    if count == 1:
        return f"{article(category)} {category}"
    return f"{NUMBERS[count] if count < len(NUMBERS) else count} {plural(category)}"
