"""How a plain function becomes a pipeline step: one image, one entry point, one way."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.dsl.python_component import PythonComponent


@cache
def revision() -> str:
    """The code's git revision, marked where files differ from it; `unversioned` outside of a checkout.

    An image holds no repository: there VLMFLOW_REVISION says what it was built from.
    """
    if given := os.environ.get("VLMFLOW_REVISION"):
        return given
    head = _git("rev-parse", "--short=12", "HEAD").strip()
    changed = (
        _git("diff", "HEAD", "--", "models", "vlmflow", "components", "pipelines", "requirements.lock") if head else ""
    )
    return f"{head}-{hashlib.sha256(changed.encode()).hexdigest()[:8]}" if changed else head or "unversioned"


def _git(*arguments: str) -> str:
    """What git prints; nothing where there is no git or no repository."""
    place = Path(__file__).parents[2]
    try:
        return subprocess.run(["git", *arguments], cwd=place, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""


def image(target: str) -> str:
    """The name of an image of ours: by revision, never by a moving tag, or KFP's cache would lie.

    VLMFLOW_STEP_IMAGE, VLMFLOW_TRAIN_IMAGE and VLMFLOW_SERVE_IMAGE name one whole, best by its digest;
    VLMFLOW_REGISTRY says where all of them are.

    Args:
        target: `step`, `train` or `serve`, as in infra/images/Containerfile.
    """
    registry = os.environ.get("VLMFLOW_REGISTRY", "localhost")
    return os.environ.get(f"VLMFLOW_{target.upper()}_IMAGE") or f"{registry}/vlmflow-{target}:{revision()}"


IMAGE = image("step")


def step(function: Callable[..., Any]) -> PythonComponent:
    """Make `function` a pipeline step that runs in the repository's own image, from its own module.

    The container calls `vlmflow.runtime.step_runner`, which wraps KFP's executor with what every step needs: errors
    in one line, outputs that are whole or absent, and no second run of what has not changed.
    """
    component: Any = dsl.component(function, base_image=IMAGE, install_kfp_package=False)
    container = component.component_spec.implementation.container
    assert container is not None
    container.command = ["python", "-m", "vlmflow.runtime.step_runner", "kfp.dsl.executor_main"]
    container.args = [
        "--module",
        function.__module__,
        "--function",
        function.__name__,
        "--executor_input",
        "{{$}}",
        "--run",
        "{{$.pipeline_job_uuid}}",
    ]
    return component


if __name__ == "__main__":  # for the Makefile: `revision`, or `image TARGET`
    print(revision() if sys.argv[1] == "revision" else image(sys.argv[2]))  # noqa: T201
