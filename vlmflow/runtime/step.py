"""The decorator `step`, which turns a plain function into a pipeline step."""

from collections.abc import Callable
from typing import Any, overload

from kfp import dsl
from kfp.dsl.python_component import PythonComponent

from vlmflow.runtime.traits import StepTraits

# Only a placeholder, so that importing a step does not run git: `pipelines.placement` and the local runner with
# containers set the name with the revision.
BASE_IMAGE = "vlmflow-step"


@overload
def step(function: Callable[..., Any]) -> PythonComponent: ...


@overload
def step(
    *,
    whole_recipe: bool = False,
    always_run: bool = False,
    uses_registry: bool = False,
    tracking_optional: bool = False,
    reads_sources: bool = False,
    passes_on: bool = False,
    optional_inputs: str = "",
) -> Callable[[Callable[..., Any]], PythonComponent]: ...


def step(function: Callable[..., Any] | None = None, **traits: Any) -> Any:
    """Make `function` a pipeline step; used as `@step`, or with traits as `@step(always_run=True)`.

    The container calls `vlmflow.runtime.step_runner`, which wraps KFP's executor: errors of one line, outputs that
    are complete or absent, and no second run of an unchanged step.

    Args:
        function: a function with KFP's annotations, in a module of its own.
        traits: fields of `StepTraits`.
    """
    if function is None:
        return lambda decorated: _component(decorated, StepTraits(**traits))
    return _component(function, StepTraits(**traits))


def _component(function: Callable[..., Any], traits: StepTraits) -> PythonComponent:
    component: Any = dsl.component(function, base_image=BASE_IMAGE, install_kfp_package=False)
    container = component.component_spec.implementation.container
    assert container is not None
    container.command = ["python", "-m", "vlmflow.runtime.step_runner", "kfp.dsl.executor_main"]
    container.args = [
        "--module",
        function.__module__,
        "--function",
        function.__name__,
        *traits.flags(),
        "--executor_input",
        "{{$}}",
    ]
    return component
