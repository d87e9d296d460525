"""The expectations for each schema, and how much each of them weighs."""
# pyright: reportPrivateImportUsage=false
# (great_expectations.expectations is the documented place of its classes, without being marked as such)

from typing import Any

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

CRITICAL, WARNING = FailureSeverity.CRITICAL, FailureSeverity.WARNING
SPLITS = ["train", "test"]
TASKS = ["caption", "objects", "ground", "ocr", "vqa"]
PREFERENCE_SOURCES = ["human", "rule", "model"]


def build_suite(schema: str, *, strict: bool, min_rows: int, max_text: int, decontaminated: bool) -> list[Expectation]:
    """Return the expectations on the table that `measured` makes for `schema`.

    Args:
        schema: pairs, conversations or preferences.
        strict: whether what curation removes (unreadable pictures, repeated pairs, pairs that say nothing)
            is critical; before curation it is a warning.
        min_rows: the least number of rows, critical.
        max_text: characters of a caption or of a whole conversation beyond which a warning is due.
        decontaminated: whether rows that show evaluation pictures have been looked for.
    """
    weight = CRITICAL if strict else WARNING
    rows = gxe.ExpectTableRowCountToBeBetween(
        min_value=min_rows, severity=CRITICAL, description=_describe(CRITICAL, f"There are {min_rows} rows or more")
    )
    splits = [_one_of("split", SPLITS, CRITICAL), _no_faults("split_fault", WARNING, "No picture is in both splits")]
    apart = _no_faults("evaluation_fault", CRITICAL, "No row to learn from shows a picture of an evaluation set")
    own = {"pairs": _pairs, "conversations": _conversations, "preferences": _preferences}[schema]
    return [rows, *splits, *([apart] if decontaminated else []), *own(weight, max_text)]


def _pairs(weight: FailureSeverity, max_text: int) -> list[Expectation]:
    return [
        *_unique_uids(weight, "Every pair is there once"),
        _no_faults("image_fault", weight, "Every picture's header can be read, and what was decoded is whole"),
        _no_faults("size_fault", CRITICAL, "Width and height are the picture's"),
        _no_faults("region_fault", CRITICAL, "Every region has a phrase and lies in its picture"),
        _no_faults("line_fault", CRITICAL, "Every line has a text and lies in its picture"),
        _no_faults("silent_fault", weight, "Every pair says something of its picture"),
        _length("caption_length", None, max_text, WARNING),
    ]


def _conversations(weight: FailureSeverity, max_text: int) -> list[Expectation]:
    return [
        *_unique_uids(CRITICAL, "Every conversation is there once"),
        _no_faults("image_fault", CRITICAL, "Every conversation has pictures, all of them readable"),
        _no_faults("messages_fault", CRITICAL, "User and assistant take turns, and the assistant ends"),
        _length("text_length", 1, max_text, WARNING),
        _one_of("task", TASKS, WARNING),
    ]


def _preferences(weight: FailureSeverity, max_text: int) -> list[Expectation]:
    return [
        *_unique_uids(CRITICAL, "Every preference is there once"),
        _no_faults("image_fault", CRITICAL, "Every preference has pictures, all of them readable"),
        _length("prompt_length", 1, None, CRITICAL),
        _length("chosen_length", 1, None, CRITICAL),
        _length("rejected_length", 1, None, CRITICAL),
        _length("chosen_length", None, max_text, WARNING),
        _length("rejected_length", None, max_text, WARNING),
        _no_faults("choice_fault", CRITICAL, "Two different answers, and no mark of a picture out of place"),
        _one_of("source", PREFERENCE_SOURCES, WARNING),
    ]


def _unique_uids(weight: FailureSeverity, text: str) -> list[Expectation]:
    present = _describe(CRITICAL, "Every row has a uid")
    return [
        gxe.ExpectColumnValuesToNotBeNull(column="uid", severity=CRITICAL, description=present),
        gxe.ExpectColumnValuesToBeUnique(column="uid", severity=weight, description=_describe(weight, text)),
    ]


def _no_faults(column: str, weight: FailureSeverity, text: str) -> Expectation:
    return gxe.ExpectColumnValuesToBeNull(column=column, severity=weight, description=_describe(weight, text))


def _one_of(column: str, values: list[str], weight: FailureSeverity) -> Expectation:
    text = _describe(weight, f"{column.capitalize()} is one of {', '.join(values)}")
    return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=values, severity=weight, description=text)


def _length(column: str, least: int | None, most: int | None, weight: FailureSeverity) -> Expectation:
    bounds = " and ".join(f"{word} {n}" for word, n in (("at least", least), ("at most", most)) if n is not None)
    text = _describe(weight, f"{column.removesuffix('_length').capitalize()} has {bounds} characters")
    limits: dict[str, Any] = {"min_value": least, "max_value": most}
    return gxe.ExpectColumnValuesToBeBetween(column=column, **limits, severity=weight, description=text)


def _describe(weight: FailureSeverity, text: str) -> str:
    return f"{text} [{weight.value}]"
