"""Wiring, and the ways in. Every pipeline that ships, by name."""

import difflib
from importlib import import_module
from typing import Any

from components.errors import RecipeError

PIPELINES = {
    "life": "pipelines.life:life",
    "train": "pipelines.life:train",
    "pretraining": "pipelines.pretraining:pretraining",
    "zoo-check": "pipelines.pretraining:zoo_check",
    "sweep": "pipelines.sweep:sweep",
    "data-roi": "pipelines.roi:data_roi",
    "watch": "pipelines.watch:watch",
    "watch-revision": "pipelines.watch:watch_revision",
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
