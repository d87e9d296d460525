"""Wiring, and the ways in. Every pipeline that ships, by name."""

import difflib
from importlib import import_module
from typing import Any

from vlmflow.errors import RecipeError

PIPELINES = {
    "end-to-end": "pipelines.end_to_end:end_to_end",
    "train": "pipelines.end_to_end:train",
    "pretraining": "pipelines.pretraining:pretraining",
    "zoo-check": "pipelines.pretraining:zoo_check",
    "sweep": "pipelines.sweep:sweep",
    "data-ablation": "pipelines.data_ablation:data_ablation",
    "monitor-champion": "pipelines.monitor:monitor_champion",
    "monitor-champion-revision": "pipelines.monitor:monitor_champion_revision",
}

# The pipeline that does the same on the data of a revision, instead of making its own.
ON_REVISION = {"end-to-end": "train", "monitor-champion": "monitor-champion-revision"}


def load_pipeline(name: str) -> Any:
    """The pipeline of that name.

    Raises:
        RecipeError: there is none.
    """
    if name not in PIPELINES:
        near = difflib.get_close_matches(str(name), PIPELINES, n=1, cutoff=0)[0]
        raise RecipeError(f"{name}: no such pipeline; the nearest is {near!r}, all: {', '.join(PIPELINES)}")
    module, function = PIPELINES[name].split(":")
    return getattr(import_module(module), function)
