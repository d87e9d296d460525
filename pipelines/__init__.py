"""Wiring, and the ways in. Every pipeline that ships, by name."""

import difflib
from importlib import import_module
from typing import Any

from vlmflow.errors import RecipeError

PIPELINES = {
    "life": "pipelines.end_to_end:life",
    "train": "pipelines.end_to_end:train",
    "pretraining": "pipelines.pretraining:pretraining",
    "zoo-check": "pipelines.pretraining:zoo_check",
    "sweep": "pipelines.sweep:sweep",
    "data-roi": "pipelines.data_ablation:data_roi",
    "watch": "pipelines.monitor:watch",
    "watch-revision": "pipelines.monitor:watch_revision",
}

REVISION = {"life": "train", "watch": "watch-revision"}  # the pipeline that does the same on the data of a revision


def pipeline(name: str) -> Any:
    """The pipeline of that name.

    Raises:
        RecipeError: there is none.
    """
    if name not in PIPELINES:
        near = difflib.get_close_matches(str(name), PIPELINES, n=1, cutoff=0)[0]
        raise RecipeError(f"{name}: no such pipeline; the nearest is {near!r}, all: {', '.join(PIPELINES)}")
    module, function = PIPELINES[name].split(":")
    return getattr(import_module(module), function)
