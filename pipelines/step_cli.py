"""`vlmflow step`: run one step on artifacts given by path, with the same runner as in a pipeline."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from vlmflow.artifacts.file_reads import FileReads
from vlmflow.artifacts.hashing import cache_key
from vlmflow.config.nearest import nearest
from vlmflow.errors import DataError, GateError, RecipeError
from vlmflow.runtime.code_hash import LAYERS, ROOT
from vlmflow.runtime.kfp_executor import execute
from vlmflow.runtime.step_task import StepTask
from vlmflow.runtime.traits import traits_from_arguments

PARTS = ".shards"  # where curation keeps the finished parts of its work


def names() -> list[str]:
    """Return the names of all steps: the folders of components with a component.py."""
    return sorted(path.parent.name for path in (ROOT / "components").glob("*/component.py"))


def run_step(
    name: str,
    recipe: str,
    inputs: dict[str, str],
    outputs: dict[str, str],
    parameters: dict[str, Any],
    sources: Path | None = None,
) -> None:
    """Run step `name`; its outputs appear complete at their paths, or not at all.

    Args:
        sources: folder that gets links to the files that the step reads (`FileReads.link`).

    Raises:
        GateError: the step stopped the pipeline; the outputs with its reasons are written.
        RecipeError: the step does not exist, or an artifact's name is not one of its inputs or outputs.
        DataError: an input path does not exist.
    """
    if name not in names():
        raise RecipeError(f"step {name}: no such step; {nearest(name, names())}, all: {', '.join(names())}")
    module = f"components.{name}.component"
    spec = getattr(import_module(module), name).component_spec
    traits = traits_from_arguments(spec.implementation.container.args)
    artifacts = {key: value for key, value in (spec.inputs or {}).items() if "@" in value.type}
    _check_names("--in", inputs, {k for k, v in artifacts.items() if not v.optional}, set(artifacts))
    _check_names("--out", outputs, set(spec.outputs or {}), set(spec.outputs or {}))
    for key, path in inputs.items():
        if not Path(path).exists():
            raise DataError(f"{name} --in {key}={path}: file not found; run the step that writes it")
    defaults = {key: value.default for key, value in spec.inputs.items() if value.default is not None}
    first = Path(next(iter(outputs.values()))).resolve().parent
    first.mkdir(parents=True, exist_ok=True)
    with _staging_folder(first, name, outputs) as folder:
        places = {key: folder / key for key in outputs}
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
                    "outputFile": str(folder / "executor_output.json"),
                },
            },
            traits=traits,
        )
        reads = FileReads([folder, *map(Path, inputs.values()), *(ROOT / layer for layer in LAYERS)])
        try:
            with reads.recording() if sources else nullcontext():
                execute(task)
        except GateError:
            _move_outputs(places, outputs)
            raise
        _move_outputs(places, outputs)
        if sources:
            reads.link(sources)


@contextmanager
def _staging_folder(parent: Path, name: str, outputs: dict[str, str]) -> Iterator[Path]:
    """Create the folder in which the step writes, always the same one for the same outputs, and remove it at the end.

    A step that was killed leaves it. The next one deletes the incomplete outputs in it and uses the finished parts.

    Raises:
        DataError: another process writes these outputs.
    """
    folder = (
        parent
        / f".{name}-{cache_key(outputs={key: str(Path(path).absolute()) for key, path in outputs.items()})[:8]}.partial"
    )
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        owner = folder / "pid"
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{parent}: process {owner.read_text(encoding='utf-8')} is running step {name} with these outputs; "
                "wait for its end"
            ) from None
        _delete_outputs(folder)
        owner.write_text(str(os.getpid()), encoding="utf-8")
        try:
            yield folder
            shutil.rmtree(folder)
        except BaseException:
            _delete_outputs(folder)
            if not any(folder.iterdir()):
                folder.rmdir()
            raise
    finally:
        os.close(lock)


def _delete_outputs(folder: Path) -> None:
    """Delete everything except finished parts, from which the same step resumes."""
    for path in folder.iterdir():
        if path.name != PARTS:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


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
