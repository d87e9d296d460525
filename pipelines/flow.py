"""Turn a function that wires steps into a pipeline, for this machine or for a cluster.

    @flow
    def end_to_end(recipe: str = default_recipe("demo")):
        \"\"\"The description in Kubeflow's UI; `Args:` describes each parameter.\"\"\"

On a cluster the pipeline also gets the steps `plan` (first) and `finish` (exit handler), and each task gets its
resources. kfp.local has no exit handler; there the local runner reports the result.
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
from components.plan.sections import SECTIONS
from pipelines.placement import Placement
from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.traits import traits_from_arguments


def flow(function: Callable[..., Any]) -> GraphComponent:
    """Make `function` a KFP pipeline; its name is the function's, with dashes."""
    return dsl.pipeline(function, name=function.__name__.replace("_", "-"))  # type: ignore[return-value]


def default_recipe(name: str) -> str:
    """Return the text of recipes/`name`.yaml, the default of a pipeline's `recipe` parameter in the UI."""
    return (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def on_cluster(pipeline: GraphComponent, placement: Placement) -> GraphComponent:
    """Return the pipeline for a cluster: `plan` runs first, `finish` runs last in any case, resources are set.

    `plan` splits the recipe, so that each task gets its own section only. KFP's cache key contains the parameters: with
    the whole recipe as a parameter, any change would miss the cache of every step.
    """
    wire = pipeline.pipeline_func

    @functools.wraps(wire)
    def whole(recipe: Any, *parameters: Any) -> None:
        with dsl.ExitHandler(finish(pipeline=pipeline.name), name="steps"):  # type: ignore[call-arg]
            parts = plan(recipe=recipe).outputs
            wire(recipe, *parameters)
        tasks = Pipeline.get_default_pipeline().tasks.values()  # type: ignore[union-attr]
        for task in tasks:
            if "recipe" in task.inputs and not _reads_whole_recipe(task):
                _set_recipe(task, parts[_section(task)])
        placement.apply(tasks)

    return flow(whole)


def _reads_whole_recipe(task: dsl.PipelineTask) -> bool:
    container = task.component_spec.implementation.container
    return container is not None and traits_from_arguments(container.args).whole_recipe


def _section(task: dsl.PipelineTask) -> str:
    """Return the name of the recipe section that a task reads."""
    default = (task.component_spec.inputs or {}).get("section")
    return str(task.inputs.get("section") or (default.default if default else task.component_spec.name))


def _set_recipe(task: dsl.PipelineTask, part: PipelineChannel) -> None:
    """Replace the task's recipe input by `part`; KFP has no call for changing an input of an existing task."""
    whole = task.inputs["recipe"]
    task.inputs["recipe"] = part
    channels = task.channel_inputs
    channels[next(i for i, channel in enumerate(channels) if channel is whole)] = part


def compile(pipeline: GraphComponent, placement: Placement) -> str:
    """Compile the pipeline for a cluster to KFP's IR, two YAML documents; the output is deterministic.

    KFP's own writer is not used: it repeats default values in a comment, and a multi-line default breaks that comment.
    """
    placed = on_cluster(pipeline, placement)
    documents = [MessageToDict(placed.pipeline_spec), MessageToDict(placed.platform_spec)]
    return yaml.dump_all(documents, Dumper=yaml.CSafeDumper, sort_keys=True, allow_unicode=True, width=120)


def sections_read(pipeline: GraphComponent) -> list[str]:
    """Return the names of the recipe sections that the steps of a pipeline read, in the order of the table."""
    spec: Any = pipeline.pipeline_spec
    names, components = dict[str, None](), dict(spec.components)
    waiting = [spec.root.dag]
    while waiting:
        for task in waiting.pop().tasks.values():
            component = components[task.component_ref.name]
            parameters = component.input_definitions.parameters
            if "section" in parameters and "recipe" in parameters:
                given = task.inputs.parameters.get("section")
                value = given.runtime_value.constant if given else parameters["section"].default_value
                names[value.string_value] = None
            if component.WhichOneof("implementation") == "dag":
                waiting.append(component.dag)
    return [name for name in SECTIONS if name in names]
