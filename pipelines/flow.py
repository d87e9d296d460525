"""How a function that wires steps becomes a pipeline: as it stands for this machine, placed and reported for a cluster.

    @flow
    def life(recipe: str = shipped("demo")):
        \"\"\"What Kubeflow's UI says of it, and of each parameter under `Args:`.\"\"\"

kfp.local knows no exit handler that would tell of a failure, and needs none: the runner tells.
"""

import functools
from collections.abc import Callable
from typing import Any

import yaml
from google.protobuf.json_format import MessageToDict
from kfp import dsl
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.pipeline_context import Pipeline

from components.finish.component import finish
from components.sources import ROOT
from pipelines.placement import Placement


def flow(function: Callable[..., Any]) -> GraphComponent:
    """Make `function` a pipeline of its own name."""
    return dsl.pipeline(function, name=function.__name__.replace("_", "-"))  # type: ignore[return-value]


def shipped(name: str) -> str:
    """The text of a recipe that ships: what a run has whose form in the UI was left as it is."""
    return (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def on_cluster(pipeline: GraphComponent, placement: Placement) -> GraphComponent:
    """The same pipeline with every step in its place, and `finish` after them, whatever became of them."""
    wire = pipeline.pipeline_func

    @functools.wraps(wire)
    def whole(*parameters: Any) -> None:
        with dsl.ExitHandler(finish(pipeline=pipeline.name), name="steps"):  # type: ignore[call-arg]
            wire(*parameters)
        placement.put(Pipeline.get_default_pipeline().tasks.values())  # type: ignore[union-attr]

    return flow(whole)


def compiled(pipeline: GraphComponent, placement: Placement) -> str:
    """The pipeline for a cluster as KFP's IR, YAML of two documents; the same code and placement give the same text.

    Not by KFP's own writer: it repeats defaults in a comment, which one of several lines breaks out of.
    """
    placed = on_cluster(pipeline, placement)
    documents = [MessageToDict(placed.pipeline_spec), MessageToDict(placed.platform_spec)]
    return yaml.safe_dump_all(documents, sort_keys=True, allow_unicode=True, width=120)
