"""The nearest valid name to a misspelled one, for error messages."""

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[object]) -> str:
    """The phrase `the nearest is 'x'` for an error message; "there are none" where `known` is empty."""
    close = difflib.get_close_matches(str(name), [str(option) for option in known], n=1, cutoff=0)
    return f"the nearest is {close[0]!r}" if close else "there are none"
