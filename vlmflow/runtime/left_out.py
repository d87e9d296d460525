"""Steps that are left out: the recipe's section of the step is null, or an input comes from a step that was left out.

Each output of such a step is a folder with the reason, or a page with it. So the pipeline has the same tasks for every
recipe, on this machine and on a cluster, and whatever needs the missing artifact is left out too.
"""

import json
from pathlib import Path

from vlmflow.config import recipes
from vlmflow.config.sections import OPTIONAL
from vlmflow.runtime.step_task import StepTask

FILE = "card.json"  # as in datasets and checkpoints, so that the summary of a run finds the reason
_KEY = "skipped"
_PAGES = ("system.HTML", "system.Markdown")
_WITHOUT_FILE = ("system.Metrics", "system.ClassificationMetrics")


def reason_to_leave_out(task: StepTask) -> str:
    """Return why the task is left out; "" if it runs."""
    parameters = task.parameters
    name = parameters.get("section", task.function)
    if "recipe" in parameters and not task.traits.passes_on:
        sections = recipes.parse(parameters["recipe"])
        if recipes.is_null(sections, name):
            return f"the section {name!r} of the recipe is null"
        if name in OPTIONAL and name not in sections:
            return f"the recipe has no section {name!r}"
    optional = task.traits.optional_inputs.split(",")
    return next((why for key, path in task.inputs.items() if key not in optional and (why := reason(path))), "")


def reason(artifact: Path) -> str:
    """Return why the step that should have written `artifact` was left out; "" if it was not."""
    file = artifact / FILE
    if not file.is_file() or len([*artifact.iterdir()]) > 1:
        return ""
    card = json.loads(file.read_text(encoding="utf-8"))
    return str(card[_KEY]) if set(card) == {_KEY} else ""


def write_outputs(task: StepTask, reason: str) -> None:
    """Write the outputs of a task that is left out."""
    task.output_file.parent.mkdir(parents=True, exist_ok=True)
    wanted = {name: one["artifacts"][0] for name, one in task.executor_input["outputs"].get("artifacts", {}).items()}
    artifacts = {  # as KFP's executor describes them
        name: {"artifacts": [{key: one.get(key) for key in ("name", "uri", "metadata") if key in one}]}
        for name, one in wanted.items()
    }
    task.output_file.write_text(json.dumps({"artifacts": artifacts}), encoding="utf-8")
    for name, path in task.outputs.items():
        kind = wanted[name].get("type", {}).get("schemaTitle")
        if kind in _WITHOUT_FILE:
            continue
        if kind in _PAGES:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"<!doctype html><title>Left out</title><p>Left out: {reason}.</p>\n", encoding="utf-8")
        else:
            path.mkdir(parents=True, exist_ok=True)
            (path / FILE).write_text(json.dumps({_KEY: reason}) + "\n", encoding="utf-8")
