"""The pipelines that ship, by the name that `vlmflow submit` and a recipe's `pipeline` key use."""

from importlib import import_module
from typing import Any

from vlmflow.config.nearest import nearest
from vlmflow.errors import RecipeError

PIPELINES = {
    "end-to-end": "pipelines.end_to_end:end_to_end",
    "train": "pipelines.end_to_end:train",
    "finetuning": "pipelines.finetuning:finetuning",
    "pretraining": "pipelines.pretraining:pretraining",
    "zoo-check": "pipelines.pretraining:zoo_check",
    "sweep": "pipelines.sweep:sweep",
    "data-ablation": "pipelines.data_ablation:data_ablation",
    "monitor-champion": "pipelines.monitor:monitor_champion",
    "monitor-champion-revision": "pipelines.monitor:monitor_champion_revision",
}

# With --data-rev, the pipeline on the right fetches versioned data and then runs the same steps as the one on the left.
ON_REVISION = {"end-to-end": "train", "monitor-champion": "monitor-champion-revision"}


def load_pipeline(name: str) -> Any:
    """Import and return the pipeline called `name`.

    Raises:
        RecipeError: no pipeline has that name.
    """
    if name not in PIPELINES:
        raise RecipeError(f"{name}: no such pipeline; {nearest(name, PIPELINES)}, all: {', '.join(PIPELINES)}")
    module, function = PIPELINES[name].split(":")
    return getattr(import_module(module), function)
