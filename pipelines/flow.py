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
from kfp.dsl.pipeline_channel import PipelineChannel
from kfp.dsl.pipeline_context import Pipeline

from components.finish.component import finish
from components.plan.component import plan
from pipelines.placement import Placement
from vlmflow.config.sections import WHOLE
from vlmflow.runtime.code_hash import ROOT


def flow(function: Callable[..., Any]) -> GraphComponent:
    """Make `function` a pipeline of its own name."""
    return dsl.pipeline(function, name=function.__name__.replace("_", "-"))  # type: ignore[return-value]


def shipped(name: str) -> str:
    """The text of a recipe that ships: what a run has whose form in the UI was left as it is."""
    return (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def on_cluster(pipeline: GraphComponent, placement: Placement) -> GraphComponent:
    """The same pipeline with every step in its place, `plan` before them, and `finish` after, whatever became of them.

    KFP's cache goes by a step's parameters: were the recipe one of each, any change would run all of them again.
    """
    wire = pipeline.pipeline_func

    @functools.wraps(wire)
    def whole(recipe: Any, *parameters: Any) -> None:
        with dsl.ExitHandler(finish(pipeline=pipeline.name), name="steps"):  # type: ignore[call-arg]
            parts = plan(recipe=recipe).outputs
            wire(recipe, *parameters)
        tasks = Pipeline.get_default_pipeline().tasks.values()  # type: ignore[union-attr]
        for task in tasks:
            if "recipe" in task.inputs and task.component_spec.name not in WHOLE:
                _give(task, parts[_section(task)])
        placement.put(tasks)

    return flow(whole)


def _section(task: dsl.PipelineTask) -> str:
    """The section of the recipe that a task reads."""
    default = (task.component_spec.inputs or {}).get("section")
    return str(task.inputs.get("section") or (default.default if default else task.component_spec.name))


def _give(task: dsl.PipelineTask, part: PipelineChannel) -> None:
    """Make `part` the task's recipe. KFP has no call for that: a task's inputs are set when it is made."""
    whole = task.inputs["recipe"]
    task.inputs["recipe"] = part
    channels = task.channel_inputs
    channels[next(place for place, channel in enumerate(channels) if channel is whole)] = part


def compiled(pipeline: GraphComponent, placement: Placement) -> str:
    """The pipeline for a cluster as KFP's IR, YAML of two documents; the same code and placement give the same text.

    Not by KFP's own writer: it repeats defaults in a comment, which one of several lines breaks out of.
    """
    placed = on_cluster(pipeline, placement)
    documents = [MessageToDict(placed.pipeline_spec), MessageToDict(placed.platform_spec)]
    return yaml.safe_dump_all(documents, sort_keys=True, allow_unicode=True, width=120)
