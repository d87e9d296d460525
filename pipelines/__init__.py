"""Wiring, and the ways in. Every pipeline that ships, by name."""

from importlib import import_module
from typing import Any

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
    """The pipeline of that name."""
    module, function = PIPELINES[name].split(":")
    return getattr(import_module(module), function)
