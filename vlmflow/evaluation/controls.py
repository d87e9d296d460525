"""Comparison of a capability with its controls: the same measurement with blank and with shuffled images.

A model that does not use its images scores the same on them, whatever its value is.
"""

from collections.abc import Collection, Mapping
from typing import Any

from vlmflow.evaluation.config import CONTROLS


def tied_controls(value: Mapping[str, Any]) -> list[str]:
    """Return the controls that a capability does not beat: its interval is not better than theirs, without overlap.

    Args:
        value: a capability of `scores.json`. A control that was not measured counts as not beaten.
    """
    return [kind for kind in CONTROLS if not _beats(value, value.get("controls", {}).get(kind))]


def unproven(
    capabilities: Mapping[str, Mapping[str, Any]], protected: Collection[str], min_examples: int
) -> dict[str, list[str]]:
    """Return the capabilities that do not beat their controls, with those controls; "" if none can be judged.

    Args:
        capabilities: of `scores.json`; those that do not need the image are not judged, see `Result.needs_image`.
        protected: the names to judge; all are judged if none of these can be.
        min_examples: a capability with fewer examples is not judged.
    """
    candidates = {
        name: value
        for name, value in capabilities.items()
        if value.get("needs_image", value["higher_is_better"]) and value["n"] >= min_examples
    }
    judged = {name: value for name, value in candidates.items() if name in protected} or candidates
    if not judged:
        return {"": list(CONTROLS)}
    return {name: tied for name, value in judged.items() if (tied := tied_controls(value))}


def _beats(value: Mapping[str, Any], control: Mapping[str, float] | None) -> bool:
    if control is None:
        return False
    return value["low"] > control["high"] if value["higher_is_better"] else value["high"] < control["low"]
