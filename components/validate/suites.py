"""The expectations of each schema, and their severity."""
# pyright: reportPrivateImportUsage=false
# (great_expectations.expectations documents these classes, but does not mark them as exported)

from typing import Any, get_args

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

from vlmflow.artifacts.dataset import Task

CRITICAL, WARNING = FailureSeverity.CRITICAL, FailureSeverity.WARNING
SPLITS = ["train", "test"]
TASKS = list(get_args(Task))
PREFERENCE_SOURCES = ["human", "rule", "model"]


def build_suite(schema: str, *, strict: bool, min_rows: int, max_text: int, decontaminated: bool) -> list[Expectation]:
    """Return the expectations on the table that `build_table` returns for `schema`.

    Args:
        schema: pairs, conversations or preferences.
        strict: whether faults that curation removes (unreadable images, repeated pairs, pairs without content)
            are critical; otherwise they are warnings.
        min_rows: minimum number of rows, critical.
        max_text: characters of a caption or a whole conversation above which a warning is given.
        decontaminated: whether the table has the column `evaluation_fault`.
    """
    weight = CRITICAL if strict else WARNING
    rows = gxe.ExpectTableRowCountToBeBetween(
        min_value=min_rows, severity=CRITICAL, description=_describe(CRITICAL, f"At least {min_rows} rows")
    )
    splits = [_one_of("split", SPLITS, CRITICAL), _no_faults("split_fault", WARNING, "No image is in both splits")]
    apart = _no_faults("evaluation_fault", CRITICAL, "No training row has an image of an evaluation set")
    own = {"pairs": _pairs, "conversations": _conversations, "preferences": _preferences}[schema]
    return [rows, *splits, *([apart] if decontaminated else []), *own(weight, max_text)]


def _pairs(weight: FailureSeverity, max_text: int) -> list[Expectation]:
    return [
        *_unique_uids(weight, "No pair is repeated"),
        _no_faults("image_fault", weight, "Every image has a readable header, and the decoded images are complete"),
        _no_faults("size_fault", CRITICAL, "Width and height match the image"),
        _no_faults("region_fault", CRITICAL, "Every region has a phrase and is inside the image"),
        _no_faults("line_fault", CRITICAL, "Every line has a text and is inside the image"),
        _no_faults("empty_fault", weight, "Every training pair has a caption, region, line or label"),
        _no_faults("empty_test_fault", WARNING, "Every test pair has a caption, region, line or label"),
        _length("caption_length", None, max_text, WARNING),
    ]


def _conversations(weight: FailureSeverity, max_text: int) -> list[Expectation]:
    return [
        *_unique_uids(CRITICAL, "No conversation is repeated"),
        _no_faults("image_fault", CRITICAL, "Every conversation has images, all of them readable"),
        _no_faults("messages_fault", CRITICAL, "User and assistant alternate, and the assistant is last"),
        _length("text_length", 1, max_text, WARNING),
        _one_of("task", TASKS, WARNING),
    ]


def _preferences(weight: FailureSeverity, max_text: int) -> list[Expectation]:
    return [
        *_unique_uids(CRITICAL, "No preference is repeated"),
        _no_faults("image_fault", CRITICAL, "Every preference has images, all of them readable"),
        _length("prompt_length", 1, None, CRITICAL),
        _length("chosen_length", 1, None, CRITICAL),
        _length("rejected_length", 1, None, CRITICAL),
        _length("chosen_length", None, max_text, WARNING),
        _length("rejected_length", None, max_text, WARNING),
        _no_faults("choice_fault", CRITICAL, "Chosen and rejected differ, and image markers are valid"),
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
