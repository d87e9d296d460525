"""The origin of an artifact, read from the artifact itself: its card, its registered version or its manifest.

A dataset and a checkpoint are identified by their content hash, a registered version by `models:/name/version`, an
endpoint by its namespace, its name and the version that it serves. `origin_tags` stores the same in the MLflow run of
the step, so that the lineage can be followed without access to the artifacts.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmflow.errors import DataError, ModelError

ANNOTATION = "vlmflow.dev/"
ORIGIN_TAG = "origin."
_MOUNTS = ("/s3/", "/minio/", "/gcs/")  # where KFP's launcher mounts artifacts of a bucket

Kind = Literal["dataset", "model", "version", "endpoint"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """An artifact and what it was built from."""

    id: str
    kind: Kind
    name: str = ""  # for display: `710 pairs`, a family or aliases
    step: str = ""
    parents: list[str] = field(default_factory=list)  # ids
    facts: dict[str, str] = field(default_factory=dict)  # kfp_run, image, code, data_revision, …


def read_origins(folder: Path) -> list[Origin]:
    """Return the origins of the artifact in `folder`: a dataset, a checkpoint, a registered version, or manifests.

    The list is empty for any other folder.

    Raises:
        DataError, ModelError: the artifact cannot be read.
    """
    if (folder / "config.json").is_file():
        return [_checkpoint(folder)]
    if (folder / "card.json").is_file():
        return _dataset(folder)
    if (folder / "version.json").is_file():
        return [_version(_json(folder / "version.json"))]
    return [origin for file in sorted(folder.glob("*.yaml")) for origin in manifest_origins(file)]


def manifest_origins(file: Path) -> list[Origin]:
    """Return the endpoints in a file of manifests, each preceded by the version that it serves.

    Raises:
        DataError: the file is not YAML, or an endpoint has no annotation with its model.
    """
    text = file.read_text(encoding="utf-8")
    return [*_endpoints(text, file)] if "InferenceService" in text else []


def origin_tags(outputs: dict[str, Path]) -> dict[str, str]:
    """Return an MLflow tag for each output with an origin: JSON with its storage address and its origins."""
    tags = {}
    for name, path in outputs.items():
        with suppress(DataError, ModelError):  # the next step reports an unreadable artifact
            if path.is_dir() and (origins := read_origins(path)):
                content = {"place": storage_address(path), "origins": [asdict(origin) for origin in origins]}
                tags[f"{ORIGIN_TAG}{name}"] = json.dumps(content)
    return tags


def storage_address(path: Path) -> str:
    """Return the path, or in a KFP pod the URL in the bucket that is mounted there."""
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
        facts=card.get("producer") or {},
    )


def _dataset(folder: Path) -> list[Origin]:
    from vlmflow.artifacts.dataset import Dataset

    if "schema" not in _json(folder / "card.json"):
        return []  # another artifact with a card, such as curation's scorer given by name
    data = Dataset(folder)
    card = data.card
    facts = {**card.producer, **({"data_revision": card.revision} if card.revision else {})}
    name = f"{card.rows} {card.schema}"
    return [Origin(id=data.hash, kind="dataset", name=name, step=card.step, parents=card.parents, facts=facts)]


def _version(content: dict[str, Any]) -> Origin:
    facts = {"mlflow_run": content["run_id"]} if content.get("run_id") else {}
    return Origin(id=content["uri"], kind="version", step="register", parents=[content["model_hash"]], facts=facts)


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
            raise DataError(
                f"{file}: InferenceService {name} has no annotation {ANNOTATION}model-uri; `deploy` adds it"
            )
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
        raise DataError(f"{file}: invalid JSON: {error}; run the step that writes it again") from None
