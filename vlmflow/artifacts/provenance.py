"""Where an artifact comes from, as the artifact itself says: its card, its version, its manifest.

A dataset and a checkpoint go by their content hash, a registered version by `models:/name/version`, an endpoint by
its namespace, its name and the version behind it. `tags` puts the same into the MLflow run of the step that made
them, so that the chain can be walked where the artifacts are out of reach.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmflow.errors import DataError, ModelError

ANNOTATION = "vlmflow.dev/"
TAG = "origin."
_MOUNTS = ("/s3/", "/minio/", "/gcs/")  # where KFP's launcher keeps what it takes from, and brings to, a bucket

Kind = Literal["dataset", "model", "version", "endpoint"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """One artifact, and what it was made from."""

    id: str
    kind: Kind
    name: str = ""  # what a person knows it by: `710 pairs`, a family, aliases
    step: str = ""
    parents: list[str] = field(default_factory=list)  # ids
    facts: dict[str, str] = field(default_factory=dict)  # kfp_run, image, code, data_revision, …


def read(folder: Path) -> list[Origin]:
    """What lies in `folder`: a dataset or a checkpoint, or a registered version, or manifests; else nothing.

    Raises:
        DataError, ModelError: it is damaged.
    """
    if (folder / "config.json").is_file():
        return [_checkpoint(folder)]
    if (folder / "card.json").is_file():
        return _dataset(folder)
    if (folder / "version.json").is_file():
        return [_version(_json(folder / "version.json"))]
    return [origin for file in sorted(folder.glob("*.yaml")) for origin in manifest(file)]


def manifest(file: Path) -> list[Origin]:
    """The endpoints of a file of manifests, each after the version that it serves.

    Raises:
        DataError: it is no YAML, or an endpoint does not say which model it serves.
    """
    text = file.read_text(encoding="utf-8")
    return [*_endpoints(text, file)] if "InferenceService" in text else []


def tags(outputs: dict[str, Path]) -> dict[str, str]:
    """An MLflow tag for each output of a step that has an origin: JSON with its place and what `read` says of it."""
    found = {}
    for name, path in outputs.items():
        with suppress(DataError, ModelError):  # what is damaged tells nothing, and is the next step's to refuse
            if path.is_dir() and (origins := read(path)):
                told = {"place": address(path), "origins": [asdict(origin) for origin in origins]}
                found[f"{TAG}{name}"] = json.dumps(told)
    return found


def address(path: Path) -> str:
    """The path, or in a pod of KFP's the address in the bucket that stands for it."""
    if not str(path).startswith(_MOUNTS):
        return str(path)
    from kfp.dsl.types.artifact_types import convert_local_path_to_remote_path

    return convert_local_path_to_remote_path(str(path))


def _checkpoint(folder: Path) -> Origin:
    from vlmflow.artifacts.checkpoint import Checkpoint

    checkpoint = Checkpoint(folder)
    card = checkpoint.card
    return Origin(
        id=card.get("hash") or checkpoint.hash,
        kind="model",
        name=card.get("family") or "",
        step=card.get("step") or "",
        parents=[*filter(None, [card.get("parent")]), *(card.get("datasets") or [])],
        facts=card.get("made") or {},
    )


def _dataset(folder: Path) -> list[Origin]:
    from vlmflow.artifacts.dataset import Dataset

    if "schema" not in _json(folder / "card.json"):
        return []  # such as curation's scorer, where it is a name and no checkpoint
    data = Dataset(folder)
    card = data.card
    facts = {**card.made, **({"data_revision": card.revision} if card.revision else {})}
    name = f"{card.rows} {card.schema}"
    return [Origin(id=data.hash, kind="dataset", name=name, step=card.step, parents=card.parents, facts=facts)]


def _version(said: dict[str, Any]) -> Origin:
    facts = {"mlflow_run": said["run_id"]} if said.get("run_id") else {}
    return Origin(id=said["uri"], kind="version", step="register", parents=[said["model_hash"]], facts=facts)


def _endpoints(text: str, file: Path) -> Iterator[Origin]:
    import yaml

    try:
        services = [*yaml.safe_load_all(text)]
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not YAML: {' '.join(str(error).split())[:120]}") from None
    for service in services:
        if not isinstance(service, dict) or not str(service.get("kind", "")).endswith("InferenceService"):
            continue
        metadata = service.get("metadata") or {}
        notes = {
            key.removeprefix(ANNOTATION).replace("-", "_"): str(value)
            for key, value in (metadata.get("annotations") or {}).items()
            if key.startswith(ANNOTATION)
        }
        name = f"{metadata.get('namespace') or 'default'}/{metadata.get('name')}"
        uri, model = notes.pop("model_uri", ""), notes.pop("model_sha256", "")
        if not (uri or model):
            raise DataError(f"{file}: InferenceService {name} has no annotation {ANNOTATION}model-uri; `deploy` adds")
        if uri and model:
            yield Origin(id=uri, kind="version", step="register", parents=[model])
        yield Origin(
            id=f"endpoint {name} of {uri or model}",
            kind="endpoint",
            name=name,
            step="deploy",
            parents=[uri or model],
            facts=notes,
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: damaged: {error}; run the step that wrote it again") from None
