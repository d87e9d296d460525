"""The captions of a row, as sources write them."""

import math
import re
from decimal import Decimal
from typing import Any

from components.ingest.columns import text
from components.ingest.json_files import parse_literal
from vlmflow.errors import RecordError

_LIST = re.compile(r"""\s*\[\s*["'].*["']\s*,?\s*\]\s*""", re.DOTALL)


def parse_captions(value: Any) -> list[str]:
    """Return the captions of a caption column, at least one; null, NaN and an empty list are the caption "".

    Args:
        value: a text, or a list of texts, which may be written as text (in CSV): JSON, or Python as pandas writes it.

    Raises:
        RecordError: a caption is not text, or contains the image marker. Numbers are refused, since the text of a
            float is not in the source.
    """
    if isinstance(value, str) and _LIST.fullmatch(value):
        value = _parse_list(value)
    if value is None or value == [] or (isinstance(value, float) and math.isnan(value)):
        return [""]
    captions = value if isinstance(value, list) else [value]
    for i, caption in enumerate(captions, 1):
        if not isinstance(caption, str | Decimal):
            number = f"caption {i} of {len(captions)} is " if isinstance(value, list) else ""
            raise RecordError("not text", f"{number}{caption!r:.80}")
    return [text(caption) for caption in captions]


def _parse_list(value: str) -> Any:
    try:
        items = parse_literal(value)
    except RecordError:
        return value  # a caption in brackets
    return items if isinstance(items, list) and all(isinstance(item, str) for item in items) else value
