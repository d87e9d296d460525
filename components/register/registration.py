"""A model version in the MLflow registry, whole or not at all."""

import hashlib
import json
import os
import shutil
import warnings
from contextlib import suppress
from importlib.metadata import version as installed
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import models
import vlmflow
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.maker import made
from vlmflow.config.recipes import dump, parse
from vlmflow.errors import GateError, ModelError, ServiceError
from vlmflow.tracking import mlflow_run
from vlmflow.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    RegistryConfig,
    Version,
    by_hash,
    champion,
    read_json,
    versions,
)

logger = getLogger(__name__)

_REQUIREMENTS = ("torch", "transformers", "pillow", "pandas")


def register(
    model: Path, scores: Path, verdict: Path, version: Path, recipe: str, section: RegistryConfig, revision: str = ""
) -> dict[str, Any]:
    """Register `model`, or take the version that holds it already, and give it the alias that its verdict earned.

    Args:
        model: the gate's chosen checkpoint.
        scores: its scores artifact; it is kept beside the model, for the next challenger to be compared with.
        verdict: the gate's verdict, a folder.
        version: where `version.json` goes, a folder.
        recipe: the recipe's text; its hash is a tag.
        revision: git revision of the code, a tag.

    Returns:
        name, version, uri, alias, run_id, model_hash: as written to `version.json`.

    Raises:
        GateError: the registry's champion is not the one that the gate compared with.
        ServiceError: MLflow does not answer.
    """
    decision = read_json(verdict, "verdict.json")
    checkpoint = Checkpoint(model)
    tags = _tags(checkpoint, scores, recipe, revision)
    mlflow_run.client()
    with mlflow_run.answering(mlflow_run.store()):
        held = champion(section.name)
        _check_rival(decision["against"], held, checkpoint.hash, section.name)
        found = by_hash(section.name, checkpoint.hash)
        reused = found is not None
        if found is None:
            found = _create(model, scores, section.name, tags)
        try:
            alias = _alias(found, decision, held)
        except BaseException:
            if not reused:  # a version without its alias is half a registration
                _take_back(found, held)
            raise
    logger.info("%s is %s%s", found.uri, alias, " (it was registered before)" if reused else "")
    written = {
        "name": found.name,
        "version": found.version,
        "uri": found.uri,
        "alias": alias,
        "run_id": found.run_id,
        "model_hash": checkpoint.hash,
    }
    version.mkdir(parents=True, exist_ok=True)
    (version / "version.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return written


def _check_rival(against: str | None, held: Version | None, model_hash: str, name: str) -> None:
    """The verdict holds only against the champion that it was reached with."""
    if against == (held.version if held else None) or (held and held.model_hash == model_hash):
        return
    before, now = (f"models:/{name}/{v}" if v else "no champion" for v in (against, held.version if held else None))
    raise GateError(f"the gate compared with {before}, the champion is now {now}; run the gate again")


def _tags(checkpoint: Checkpoint, scores: Path, recipe: str, revision: str) -> dict[str, str]:
    """What lineage needs to find the way from a version to its checkpoint, its data and its code."""
    card = checkpoint.card
    scored = read_json(scores, "scores.json")
    if scored.get("model") not in (None, checkpoint.hash):
        raise ModelError(
            f"{scores}: these are the scores of model {scored['model'][:12]}, not of {checkpoint.hash[:12]}; "
            "evaluate the model that is to be registered"
        )
    tags = {
        "model_hash": checkpoint.hash,
        "family": card.get("family"),
        "step": card.get("step"),
        "parent": card.get("parent"),
        "datasets": ",".join(card.get("datasets") or []),
        "evaluated_on": json.dumps(scored.get("data")),
        "recipe": hashlib.sha256(dump(parse(recipe)).encode()).hexdigest(),
        "git_revision": revision,
        **{name: value for name, value in made().items() if name != "code"},
        "step_run": mlflow_run.current().id,
    }
    return {key: str(value) for key, value in tags.items() if value}


def _create(model: Path, scores: Path, name: str, tags: dict[str, str]) -> Version:
    """Log the model and make the version; what was made is taken back if a later part fails."""
    client = mlflow_run.client()
    import mlflow
    from mlflow.exceptions import MlflowException

    with TemporaryDirectory() as place:  # so that the artifacts have these names wherever they come from
        artifacts = {"model": Path(place) / "model", "scores": Path(place) / "scores"}
        shutil.copytree(model, artifacts["model"], copy_function=_link)
        shutil.copytree(scores, artifacts["scores"], copy_function=_link)
        with mlflow.start_run(run_name=f"register {name}", nested=True) as run, warnings.catch_warnings():
            # MLflow warns of its own type hints, and wants an input example, which would load and run the model here.
            warnings.simplefilter("ignore", UserWarning)
            logged = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(Path(vlmflow.__path__[0]) / "serving" / "pyfunc.py"),
                artifacts={key: str(path) for key, path in artifacts.items()},
                code_paths=[str(Path(vlmflow.__path__[0])), str(Path(models.__path__[0]))],
                pip_requirements=[f"{package}=={installed(package)}" for package in _REQUIREMENTS],
                signature=_signature(),
            )
    try:
        if not any(registered.name == name for registered in client.search_registered_models()):
            client.create_registered_model(name)
        made = client.create_model_version(
            name, source=logged.model_uri, run_id=run.info.run_id, tags=tags, model_id=logged.model_id
        )
    except MlflowException:
        with suppress(MlflowException):  # the first error is the one to show
            client.delete_logged_model(logged.model_id)
        raise
    return next(version for version in versions(name) if version.version == str(made.version))


def _take_back(made: Version, held: Version | None) -> None:
    """Delete a version whose alias failed, and leave the champion as it was.

    Where the store is out of reach for this too, the version stays without an alias: nothing serves it, and the next
    `register` of the same checkpoint finds it and gives it its alias.
    """
    from mlflow.exceptions import MlflowException

    try:
        client = mlflow_run.client()
        client.delete_model_version(made.name, made.version)
        if held:  # the alias may have moved, though its answer was lost
            client.set_registered_model_alias(held.name, CHAMPION, held.version)
    except (MlflowException, ServiceError) as error:
        logger.warning("%s stays without an alias, register it again: %s", made.uri, " ".join(str(error).split())[:160])


def _link(source: str, target: str) -> None:
    """A hard link where the disk is the same, else a copy; MLflow refuses symbolic links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image"), ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.string)]),
    )


def _alias(found: Version, decision: dict[str, Any], held: Version | None) -> str:
    """Champion if the gate promoted it, else challenger with the reasons; an alias sits on one version at a time."""
    client = mlflow_run.client()
    is_champion = held is not None and held.version == found.version
    alias = CHAMPION if decision["promoted"] or is_champion else CHALLENGER
    client.set_model_version_tag(found.name, found.version, "gate", "; ".join(decision["reasons"])[:5000])
    client.set_registered_model_alias(found.name, alias, found.version)
    if alias == CHAMPION and CHALLENGER in found.aliases:
        client.delete_registered_model_alias(found.name, CHALLENGER)
    return alias
