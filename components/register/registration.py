"""Registration of a model version in the MLflow registry, complete or not at all."""

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
from vlmflow.artifacts.json_file import read_json
from vlmflow.artifacts.producer import producer
from vlmflow.config.recipes import dump, parse
from vlmflow.errors import GateError, ModelError, ServiceError
from vlmflow.evaluation.scores import read_scores
from vlmflow.tracking import mlflow_run, mlflow_store
from vlmflow.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    RegistryConfig,
    Version,
    champion_version,
    list_versions,
    version_by_hash,
)

logger = getLogger(__name__)

CODE = "vlmflow_code"  # as in pyfunc.py, which can be imported only by MLflow
_REQUIREMENTS = ("torch", "transformers", "pillow", "pandas")


def register(
    model: Path, scores: Path, verdict: Path, version: Path, recipe: str, section: RegistryConfig, revision: str = ""
) -> dict[str, Any]:
    """Register `model`, or reuse its existing version, and set the alias that the gate's decision gives it.

    Args:
        model: the gate's chosen checkpoint.
        scores: its scores artifact, stored beside the model for the comparison with the next challenger.
        verdict: folder of the gate's `verdict.json`.
        version: folder to write `version.json` to.
        recipe: the recipe's text; its hash becomes a tag.
        revision: git revision of the code; becomes a tag.

    Returns:
        name, version, uri, alias, run_id, model_hash: as written to `version.json`.

    Raises:
        GateError: the registry's champion is no longer the one that the gate compared with.
        ServiceError: MLflow cannot be reached.
    """
    decision = read_json(verdict, "verdict.json")
    checkpoint = Checkpoint(model)
    tags = _tags(checkpoint, scores, recipe, revision)
    mlflow_store.client()
    with mlflow_store.service_errors():
        current = champion_version(section.name)
        _check_champion_unchanged(decision["against"], current, checkpoint.hash, section.name)
        registered = version_by_hash(section.name, checkpoint.hash)
        reused = registered is not None
        if registered is None:
            registered = _create(model, scores, section.name, tags)
        try:
            alias = _set_alias(registered, decision, current)
        except BaseException:
            if not reused:  # a version without an alias is an incomplete registration
                _rollback(registered, current)
            raise
    logger.info("%s is %s%s", registered.uri, alias, " (registered earlier)" if reused else "")
    content = {
        "name": registered.name,
        "version": registered.version,
        "uri": registered.uri,
        "alias": alias,
        "run_id": registered.run_id,
        "model_hash": checkpoint.hash,
    }
    version.mkdir(parents=True, exist_ok=True)
    (version / "version.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def _check_champion_unchanged(against: str | None, current: Version | None, model_hash: str, name: str) -> None:
    """Check that the gate compared with the current champion.

    Raises:
        GateError: it compared with another one.
    """
    if against == (current.version if current else None) or (current and current.model_hash == model_hash):
        return
    before, now = (
        f"models:/{name}/{v}" if v else "no champion" for v in (against, current.version if current else None)
    )
    raise GateError(f"the gate compared with {before}, the champion is now {now}; run the gate again")


def _tags(checkpoint: Checkpoint, scores: Path, recipe: str, revision: str) -> dict[str, str]:
    """Tags that link the version to its checkpoint, data and code, for lineage."""
    card = checkpoint.card
    evaluation = read_scores(scores)
    if evaluation.get("model") not in (None, checkpoint.hash):
        raise ModelError(
            f"{scores}: these are the scores of model {evaluation['model'][:12]}, not of {checkpoint.hash[:12]}; "
            "evaluate the model to be registered"
        )
    tags = {
        "model_hash": checkpoint.hash,
        "family": card.get("family"),
        "step": card.get("step"),
        "parent": card.get("parent"),
        "datasets": ",".join(card.get("datasets") or []),
        "evaluated_on": json.dumps(evaluation.get("data")),
        "recipe": hashlib.sha256(dump(parse(recipe)).encode()).hexdigest(),
        "git_revision": revision,
        **{name: value for name, value in producer().items() if name != "code"},
        "step_run": mlflow_run.current_run().id,
    }
    return {key: str(value) for key, value in tags.items() if value}


def _create(model: Path, scores: Path, name: str, tags: dict[str, str]) -> Version:
    """Log the model and create its version; delete the logged model if creating the version fails."""
    client = mlflow_store.client()
    import mlflow
    from mlflow.exceptions import MlflowException

    with TemporaryDirectory() as folder:  # gives the artifacts these names, whatever their paths are
        artifacts = {"model": Path(folder) / "model", "scores": Path(folder) / "scores"}
        shutil.copytree(model, artifacts["model"], copy_function=_hardlink)
        shutil.copytree(scores, artifacts["scores"], copy_function=_hardlink)
        for package in (vlmflow, models):
            source, target = Path(package.__path__[0]), Path(folder) / CODE / package.__name__
            shutil.copytree(source, target, copy_function=_hardlink, ignore=shutil.ignore_patterns("__pycache__"))
        register_run = mlflow.start_run(run_name=f"register {name}", nested=True, log_system_metrics=False)
        with register_run as run, warnings.catch_warnings():
            # MLflow warns about its own type hints and asks for an input example, which would run the model here.
            warnings.simplefilter("ignore", UserWarning)
            logged = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(Path(vlmflow.__path__[0]) / "serving" / "pyfunc.py"),
                artifacts={key: str(path) for key, path in artifacts.items()},
                code_paths=[str(Path(folder) / CODE)],  # in a folder of its own; see pyfunc.py
                pip_requirements=[f"{package}=={installed(package)}" for package in _REQUIREMENTS],
                signature=_signature(),
            )
            evaluation = read_scores(scores)
            _log_scores(evaluation, logged.model_id)
    try:
        if not any(registered.name == name for registered in client.search_registered_models()):
            client.create_registered_model(name, description="A vision-language model of vlmflow.")
        created = client.create_model_version(
            name,
            source=logged.model_uri,
            run_id=run.info.run_id,
            tags=tags,
            model_id=logged.model_id,
            description=_describe(tags, evaluation),
        )
    except MlflowException:
        with suppress(MlflowException):  # the first error is the one to show
            client.delete_logged_model(logged.model_id)
        raise
    return next(version for version in list_versions(name) if version.version == str(created.version))


def _log_scores(evaluation: dict[str, Any], model_id: str) -> None:
    """Log the scores to the active run and the logged model, with the dataset that they were measured on."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    values = {name.replace(" ", "_"): score["value"] for name, score in evaluation.get("capabilities", {}).items()}
    digest = hashlib.sha256(json.dumps(evaluation.get("data")).encode()).hexdigest()[:36]  # MLflow's limit
    dataset = MetaDataset(CodeDatasetSource({"data": json.dumps(evaluation.get("data"))}), "evaluation", digest)
    mlflow.log_input(dataset, context="evaluation")
    if values:
        mlflow.log_metrics(values, dataset=dataset, model_id=model_id)


def _describe(tags: dict[str, str], evaluation: dict[str, Any]) -> str:
    """The description of a version, for people."""
    family, step, code = (tags.get(name, "unknown") for name in ("family", "step", "git_revision"))
    lines = [f"Family {family} after the step {step}, code {code}.", ""]
    for name, score in evaluation.get("capabilities", {}).items():
        interval = f" [{score['low']:.3f}, {score['high']:.3f}]" if {"low", "high"} <= score.keys() else ""
        lines.append(f"- {name}: {score['value']:.3f}{interval}")
    return "\n".join(lines)


def _rollback(created: Version, current: Version | None) -> None:
    """Delete a version whose alias could not be set, and restore the champion's alias.

    If the store cannot be reached for this either, the version stays without an alias: it is not served, and the next
    `register` of the same checkpoint reuses it and sets the alias.
    """
    from mlflow.exceptions import MlflowException

    try:
        client = mlflow_store.client()
        client.delete_model_version(created.name, created.version)
        if current:  # the alias may have been set although the response was lost
            client.set_registered_model_alias(current.name, CHAMPION, current.version)
    except (MlflowException, ServiceError) as error:
        logger.warning(
            "%s stays without an alias; register it again: %s", created.uri, " ".join(str(error).split())[:160]
        )


def _hardlink(source: str, target: str) -> None:
    """Create a hard link on the same disk, otherwise a copy; MLflow refuses symbolic links."""
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


def _set_alias(version: Version, decision: dict[str, Any], current: Version | None) -> str:
    """Set the alias: champion if the gate promoted the model, otherwise challenger; an alias has one version."""
    client = mlflow_store.client()
    is_champion = current is not None and current.version == version.version
    alias = CHAMPION if decision["promoted"] or is_champion else CHALLENGER
    client.set_model_version_tag(version.name, version.version, "gate", "; ".join(decision["reasons"])[:5000])
    client.set_registered_model_alias(version.name, alias, version.version)
    if alias == CHAMPION and CHALLENGER in version.aliases:
        client.delete_registered_model_alias(version.name, CHALLENGER)
    return alias
