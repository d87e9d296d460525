"""Where a cluster fetches a registered version from."""

import os
from typing import Any

from vlmflow.errors import ServiceError

_FETCHED = ("s3://", "gs://", "pvc://", "hf://", "http://", "https://", "hdfs://", "oci://")  # storage initializer
_PROXIED = "mlflow-artifacts:/"
DESTINATION = "MLFLOW_ARTIFACTS_DESTINATION"


def checkpoint_uri(registered: dict[str, Any]) -> str:
    """The URI of the version's checkpoint, where the registry keeps it.

    Raises:
        ServiceError: MLflow does not answer.
    """
    from vlmflow.tracking import mlflow_run

    client = mlflow_run.client()
    with mlflow_run.answering(mlflow_run.store()):
        uri = client.get_model_version_download_uri(registered["name"], registered["version"])
    if uri.startswith(_PROXIED) and (destination := os.environ.get(DESTINATION)):
        uri = f"{destination.rstrip('/')}/{uri.removeprefix(_PROXIED).lstrip('/')}"
    return f"{uri.rstrip('/')}/artifacts/model"  # where `register` puts it in the version's folder


def unreachable_reason(uri: str) -> str:
    """Why KServe cannot fetch `uri`, and what to do; nothing where it can."""
    if uri.startswith(_FETCHED):
        return ""
    setting = f", or {DESTINATION} to the bucket of MLflow's server" if uri.startswith(_PROXIED) else ""
    return f"KServe cannot fetch {uri}: set deploy.storage, such as pvc://models/vlm/3{setting}"


def check_reachable(uri: str) -> None:
    """Raises ServiceError if KServe cannot fetch `uri`."""
    if reason := unreachable_reason(uri):
        raise ServiceError(reason)
