"""Sizes that a builder hands on to a config."""

import dataclasses
import difflib
from typing import Any

from transformers import PreTrainedConfig


def declared(config: type[PreTrainedConfig], sizes: dict[str, Any]) -> dict[str, Any]:
    """`sizes`, all of which `config` declares itself; transformers would keep any other as it is, and use it nowhere.

    Raises:
        TypeError: one that it does not declare.
    """
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    known = {field.name for field in dataclasses.fields(config)} - inherited
    for name, value in sizes.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise TypeError(f"{name}: no such size (value {value!r}); the nearest is {near!r}")
    return sizes
