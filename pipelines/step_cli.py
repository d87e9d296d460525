"""`vlmflow step`: run one step on artifacts given by path, with the same runner as in a pipeline."""

import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from vlmflow.config.nearest import nearest
from vlmflow.errors import DataError, GateError, RecipeError
from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.kfp_executor import execute
from vlmflow.runtime.step_task import StepTask


def names() -> list[str]:
    """Return the names of all steps: the folders of components with a component.py."""
    return sorted(path.parent.name for path in (ROOT / "components").glob("*/component.py"))


def run_step(
    name: str, recipe: str, inputs: dict[str, str], outputs: dict[str, str], parameters: dict[str, Any]
) -> None:
    """Run step `name`; its outputs appear complete at their paths, or not at all.

    Raises:
        GateError: the step stopped the pipeline; the outputs with its reasons are written.
        RecipeError: the step does not exist, or an artifact's name is not one of its inputs or outputs.
        DataError: an input path does not exist.
    """
    if name not in names():
        raise RecipeError(f"step {name}: no such step; {nearest(name, names())}, all: {', '.join(names())}")
    module = f"components.{name}.component"
    spec = getattr(import_module(module), name).component_spec
    artifacts = {key: value for key, value in (spec.inputs or {}).items() if "@" in value.type}
    _check_names("--in", inputs, {k for k, v in artifacts.items() if not v.optional}, set(artifacts))
    _check_names("--out", outputs, set(spec.outputs or {}), set(spec.outputs or {}))
    for key, path in inputs.items():
        if not Path(path).exists():
            raise DataError(f"{name} --in {key}={path}: file not found; run the step that writes it")
    defaults = {key: value.default for key, value in spec.inputs.items() if value.default is not None}
    first = Path(next(iter(outputs.values()))).resolve().parent
    first.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=first) as folder:
        places = {key: Path(folder) / key for key in outputs}
        task = StepTask(
            module,
            name,
            {
                "inputs": {
                    "parameterValues": {**defaults, "recipe": recipe, **parameters},
                    "artifacts": {key: _artifact(key, path, artifacts[key].type) for key, path in inputs.items()},
                },
                "outputs": {
                    "artifacts": {key: _artifact(key, path, spec.outputs[key].type) for key, path in places.items()},
                    "outputFile": str(Path(folder) / "executor_output.json"),
                },
            },
        )
        try:
            execute(task)
        except GateError:
            _move_outputs(places, outputs)
            raise
        _move_outputs(places, outputs)


def _move_outputs(places: dict[str, Path], outputs: dict[str, str]) -> None:
    for key in [key for key in outputs if places[key].exists()]:
        target = Path(outputs[key])
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(places[key], target)


def _artifact(name: str, path: str | Path, kind: str) -> dict[str, Any]:
    title, version = kind.split("@")
    artifact = {"name": name, "uri": str(Path(path).resolve()), "metadata": {}}
    return {"artifacts": [{**artifact, "type": {"schemaTitle": title, "schemaVersion": version}}]}


def _check_names(option: str, given: dict[str, str], needed: set[str], known: set[str]) -> None:
    if missing := needed - set(given):
        raise RecipeError(f"{option}: missing {', '.join(sorted(missing))}; write {option} name=path for each")
    if extra := set(given) - known:
        raise RecipeError(f"{option}: unknown {', '.join(sorted(extra))}; the step has {', '.join(sorted(known))}")
