"""The model registry as the steps read it: the versions, the champion, and the files of a version."""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from vlmflow.config.section import Section
from vlmflow.errors import ModelError
from vlmflow.tracking import mlflow_store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"


class RegistryConfig(Section):
    """Where a model is registered."""

    name: str = Field(default="vlm", description="Name of the registered model, and of its endpoint.")

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
        """Hash of the registered checkpoint."""
        return self.tags.get("model_hash", "")


def champion_version(name: str) -> Version | None:
    """Return the version of model `name` with the alias `champion`, or None."""
    return version_by_alias(name, CHAMPION)


def version_by_alias(name: str, alias: str) -> Version | None:
    """Return the version of model `name` with this alias, or None."""
    return next((version for version in list_versions(name) if alias in version.aliases), None)


def version_by_hash(name: str, model_hash: str) -> Version | None:
    """Return the version of model `name` that contains the checkpoint with this hash, or None."""
    return next((version for version in list_versions(name) if version.model_hash == model_hash), None)


def list_versions(name: str) -> list[Version]:
    """Return all versions of model `name`, newest first; empty if it was never registered."""
    client = mlflow_store.client()
    models = [model for model in client.search_registered_models() if model.name == name]
    if not models:
        return []
    aliases: dict[str, list[str]] = {}
    for alias, version in models[0].aliases.items():
        aliases.setdefault(str(version), []).append(alias)
    registered: list[ModelVersion] = []
    token: str | None = None
    while True:  # the store returns pages
        page = client.search_model_versions(f"name='{name}'", page_token=token)
        registered.extend(page)
        token = page.token
        if not token:
            break
    versions = [
        Version(v.name, str(v.version), v.run_id or "", dict(v.tags), tuple(aliases.get(str(v.version), ())))
        for v in registered
    ]
    return sorted(versions, key=lambda version: -int(version.version))


def download(uri: str) -> Path:
    """Return a folder with the `model/` and `scores/` of a registered version; it exists until this process ends.

    Args:
        uri: `models:/name/version` or `models:/name@alias`.

    Raises:
        ModelError: the version does not exist; the message lists the registered ones.
    """
    mlflow_store.client()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    folder = None  # files of a local store are used in place
    if mlflow_store.uri().startswith(("http://", "https://")):
        folder = tempfile.mkdtemp(prefix="vlmflow-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        return Path(download_artifacts(artifact_uri=f"{uri}/artifacts", dst_path=folder))
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{uri}: cannot download: {reason}; registered versions: {format_versions()}") from None


def format_versions() -> str:
    """Return all registered versions for a message: `models:/vlm/2 (champion), …`."""
    names = [model.name for model in mlflow_store.client().search_registered_models()]
    versions = [version for name in names for version in list_versions(name)]
    return ", ".join(f"{v.uri} ({', '.join(v.aliases)})" if v.aliases else v.uri for v in versions) or "none"
