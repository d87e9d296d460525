"""The registry as the other steps read it: which version is the champion, and where its files are."""

import atexit
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from vlmflow.config.section import Section
from vlmflow.errors import ModelError
from vlmflow.tracking import mlflow_run

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"


class RegistryConfig(Section):
    """Where a model is registered."""

    name: str = Field("vlm", description="Name of the registered model, and of its endpoint.")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name or set(name) & set("/:@ "):
            raise ValueError(f"must be a word without / : @ and spaces, got {name!r}")
        return name


@dataclass(frozen=True)
class Version:
    """A registered model version."""

    name: str
    version: str
    run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        """`models:/name/version`."""
        return f"models:/{self.name}/{self.version}"

    @property
    def model_hash(self) -> str:
        """Hash of the checkpoint that was registered."""
        return self.tags.get("model_hash", "")


def champion(name: str) -> Version | None:
    """The version with the alias `champion`, or None where there is none yet."""
    return at_alias(name, CHAMPION)


def at_alias(name: str, alias: str) -> Version | None:
    """The version of `name` with that alias, or None."""
    return next((version for version in versions(name) if alias in version.aliases), None)


def by_hash(name: str, model_hash: str) -> Version | None:
    """The version of `name` that holds the checkpoint `model_hash`, or None."""
    return next((version for version in versions(name) if version.model_hash == model_hash), None)


def versions(name: str) -> list[Version]:
    """Every version of `name`, newest first; empty where the model was never registered."""
    client = mlflow_run.client()
    registered = [model for model in client.search_registered_models() if model.name == name]
    if not registered:
        return []
    aliases: dict[str, list[str]] = {}
    for alias, version in registered[0].aliases.items():
        aliases.setdefault(str(version), []).append(alias)
    found: list[ModelVersion] = []
    token: str | None = None
    while True:  # the store hands versions out in pages
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            break
    made = [
        Version(v.name, str(v.version), v.run_id or "", dict(v.tags), tuple(aliases.get(str(v.version), ())))
        for v in found
    ]
    return sorted(made, key=lambda version: -int(version.version))


def download(uri: str) -> Path:
    """The folder that holds a registered version's `model/` and `scores/`, until this process ends.

    Args:
        uri: `models:/name/version` or `models:/name@alias`.

    Raises:
        ModelError: there is no such version; the message lists those that are.
    """
    mlflow_run.client()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    place = None  # a local store's files are used where they lie
    if mlflow_run.store().startswith(("http://", "https://")):
        place = tempfile.mkdtemp(prefix="vlmflow-")
        atexit.register(shutil.rmtree, place, ignore_errors=True)
    try:
        return Path(download_artifacts(artifact_uri=f"{uri}/artifacts", dst_path=place))
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{uri}: cannot be fetched: {reason}; registered: {listing()}") from None


def listing() -> str:
    """What is registered, for a message: `models:/vlm/2 (champion), …`."""
    names = [model.name for model in mlflow_run.client().search_registered_models()]
    found = [version for name in names for version in versions(name)]
    return ", ".join(f"{v.uri} ({', '.join(v.aliases)})" if v.aliases else v.uri for v in found) or "nothing yet"


def read_json(folder: str | Path, name: str) -> dict[str, Any]:
    """Read a JSON file of an artifact.

    Raises:
        ModelError: it is not there, or damaged.
    """
    path = Path(folder) / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: missing; run the step before this one again") from None
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}: damaged: {error}; run the step that wrote it again") from None
