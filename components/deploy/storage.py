"""The URI from which a cluster fetches a registered version."""

import os
import re
from typing import Any

from vlmflow.errors import ServiceError

# What the storage initializer of KServe's release fetches, and a volume, which KServe mounts.
_FETCHABLE = re.compile(r"(s3|gs|hf|hdfs|webhdfs|modelscope|pvc)://.|https?://(.+)/(.+)")
_MLFLOW_PROXY = "mlflow-artifacts:/"
DESTINATION = "MLFLOW_ARTIFACTS_DESTINATION"


def checkpoint_uri(registered: dict[str, Any]) -> str:
    """Return the URI of the version's checkpoint in the registry's artifact store.

    Raises:
        ServiceError: MLflow does not answer.
    """
    from vlmflow.tracking import mlflow_store

    client = mlflow_store.client()
    with mlflow_store.service_errors():
        uri = client.get_model_version_download_uri(registered["name"], registered["version"])
    if uri.startswith(_MLFLOW_PROXY) and (destination := os.environ.get(DESTINATION)):
        uri = f"{destination.rstrip('/')}/{uri.removeprefix(_MLFLOW_PROXY).lstrip('/')}"
    return f"{uri.rstrip('/')}/artifacts/model"  # its path in the version's folder, as `register` writes it


def unreachable_reason(uri: str) -> str:
    """Return why KServe cannot fetch `uri` and what to do; "" if it can."""
    if _FETCHABLE.match(uri):
        return ""
    setting = f", or {DESTINATION} to the bucket of MLflow's server" if uri.startswith(_MLFLOW_PROXY) else ""
    return f"KServe cannot fetch {uri}: set deploy.storage, such as pvc://models/vlm/3{setting}"


def check_reachable(uri: str) -> None:
    """Raises ServiceError if KServe cannot fetch `uri`."""
    if reason := unreachable_reason(uri):
        raise ServiceError(reason)
