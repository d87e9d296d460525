"""The fingerprint of a task: everything that determines its outcome, by content."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmflow.artifacts.files import match
from vlmflow.artifacts.hashing import cache_key, content_hash
from vlmflow.config import recipes
from vlmflow.config.sections import part
from vlmflow.runtime.code_hash import code_hash
from vlmflow.runtime.step_task import StepTask


def fingerprint(task: StepTask) -> dict[str, Any]:
    """Return the hashes of inputs, code and files that the recipe names, the parameters, and the recipe section."""
    parameters = dict(task.parameters)
    section: Any = None
    if "recipe" in parameters:
        sections = recipes.parse(parameters.pop("recipe"))
        name = parameters.get("section", task.function)
        if change := parameters.get("change"):
            sections = recipes.changed(sections, name, change)
        section = {"seed": 0} | (sections if task.traits.whole_recipe else part(sections, task.function, name))
    # With `reads_sources`, the step cache compares the files that the step opened.
    names_files = not (task.traits.whole_recipe or task.traits.always_run or task.traits.reads_sources)
    return {
        "inputs": {name: content_hash(path) for name, path in task.inputs.items()},
        "section": section,
        "files": hash_named_files(section) if names_files else {},
        "code": code_hash(task.module),
        "parameters": parameters,
    }


def is_cacheable(task: StepTask, found: dict[str, Any]) -> bool:
    """Return whether an earlier result may be used; a remote file may change without a change of the fingerprint."""
    if task.traits.always_run:
        return False
    return task.traits.whole_recipe or not names_remote_path(found["section"])


def task_key(task: StepTask, found: dict[str, Any]) -> str:
    """Return the key of the task's entry in the step cache.

    `register` changes the registry state that is part of its key; its entry is stored under the state that it leaves.
    """
    state = registry_state(task.inputs, found["section"] or {}) if task.traits.uses_registry else None
    return cache_key(function=task.function, outside=state, **found)


def registry_state(inputs: dict[str, Path], section: dict[str, Any]) -> Any:
    """Return the part of the model registry that a step's outcome depends on.

    For a step that registers its input `model`: the version and the aliases of that model. Otherwise the version of
    the champion; None if the champion is the step's own `candidate` or `fallback`, because then the decision is the
    same as before it was registered.
    """
    from vlmflow.artifacts.checkpoint import Checkpoint
    from vlmflow.tracking.registry import champion_version, version_by_hash

    name = (section.get("register") or {}).get("name", "vlm")
    if "model" in inputs:
        registered = version_by_hash(name, Checkpoint(inputs["model"]).hash)
        return [registered.version, registered.aliases] if registered else None
    champion = champion_version(name)
    own = {Checkpoint(inputs[candidate]).hash for candidate in ("candidate", "fallback")}
    return None if champion is None or champion.model_hash in own else champion.version


def hash_named_files(section: Any) -> dict[str, str]:
    """Return the content hash of each local file or folder that a recipe section names, directly or by a pattern."""
    hashes = {}
    for text in filter(None, _strings(section)):
        try:  # a folder may be named like a pattern
            found = [text] if Path(text).exists() else map(str, match(text)) if glob.has_magic(text) else []
        except OSError:  # a text that is too long for a path
            continue
        hashes |= {path: content_hash(Path(path)) for path in found}
    return hashes


def names_remote_path(section: Any) -> bool:
    """Return whether a recipe section contains a URL, such as s3://bucket."""
    return any("://" in text for text in _strings(section))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
