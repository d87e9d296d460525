"""How a plain function becomes a pipeline step: one image, one entry point, one way."""

import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.dsl.python_component import PythonComponent


@cache
def revision() -> str:
    """The code's git revision; `unversioned` outside of a checkout."""
    place = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=place, capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return "unversioned"
    return found.stdout.strip() or "unversioned"


# By revision, never by a moving tag: a cache that goes by the image's name would lie.
IMAGE = os.environ.get("VLMFLOW_IMAGE") or f"localhost/vlmflow-python:{revision()}"


def step(function: Callable[..., Any]) -> PythonComponent:
    """Make `function` a pipeline step that runs in the repository's own image, from its own module.

    The container calls `components.execute`, which wraps KFP's executor with what every step needs: errors
    in one line, outputs that are whole or absent, and no second run of what has not changed.
    """
    component: Any = dsl.component(function, base_image=IMAGE, install_kfp_package=False)
    container = component.component_spec.implementation.container
    assert container is not None
    container.command = ["python", "-m", "components.execute", "kfp.dsl.executor_main"]
    container.args = [
        "--module",
        function.__module__,
        "--function",
        function.__name__,
        "--executor_input",
        "{{$}}",
    ]
    return component
