"""A model version becomes an endpoint: its manifest for a cluster, and a trial of the predictor on this machine."""

import json
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.register.registry import read_json

logger = getLogger(__name__)

_FETCHED = ("s3://", "gs://", "pvc://", "hf://", "http://", "https://", "hdfs://", "oci://")  # storage initializer


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """How the endpoint is run.

    image: container image with this code; empty means the one that the steps run in.
    storage: URI that KServe fetches the version from, such as `pvc://models/vlm/3`; empty means the registry's own.
    local: try the predictor on this machine.
    prompt: what it is asked about a picture of the test split.
    timeout: seconds that the predictor may take until it is ready.
    """

    image: str = ""
    storage: str = ""
    namespace: str = "default"
    service_account: str = "default"
    cpu: str = "1"
    memory: str = "4Gi"
    gpus: int = 0
    min_replicas: int = 1
    max_replicas: int = 1
    local: bool = True
    prompt: str = "Describe the picture."
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"replicas: expected 0 <= {self.min_replicas} <= {self.max_replicas}, and at least 1 at most"
            )
        if self.gpus < 0:
            raise ValueError(f"gpus must not be negative, got {self.gpus}")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}")
        if not self.prompt.strip():
            raise ValueError("prompt must not be empty")


def deploy(
    model: Path, version: Path, pairs: Path, manifest: Path, transcript: Path, image: str, section: Deployment
) -> None:
    """1. Write the InferenceService. 2. Start the predictor here, ask it, and write down what it said.

    Args:
        model: the checkpoint that was registered.
        version: folder of `version.json`.
        pairs: a pairs dataset with a test split; its first test picture is asked about.
        manifest, transcript: folders for `inferenceservice.yaml` and `transcript.json`.
        image: the container image for the manifest.

    Raises:
        ServiceError: the predictor does not start, or does not answer as it should.
        DataError: there is no test picture.
    """
    from components.deploy import trial
    from components.deploy.manifest import dns_name, inference_service, write

    registered = read_json(version, "version.json")
    name = dns_name(registered["name"])
    storage = section.storage or _storage(registered)
    path = write(manifest, inference_service(registered, storage, section.image or image, section))
    logger.info("manifest of %s: kubectl apply -f %s", registered["uri"], path)

    record: dict[str, Any] = {"model": name, "version": registered["version"], "exchanges": []}
    if section.local:
        uid, picture = _picture(pairs)
        record["picture"] = uid
        with trial.endpoint(model, name, section.timeout) as url:
            record["exchanges"] = trial.converse(url, name, picture, section.prompt)
    transcript.mkdir(parents=True, exist_ok=True)
    (transcript / "transcript.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _storage(registered: dict[str, Any]) -> str:
    """Where the registry keeps the version; that a cluster can fetch it from there is for the user to see to."""
    from components import tracking

    client = tracking.client()
    with tracking.answering(tracking.store()):
        uri = client.get_model_version_download_uri(registered["name"], registered["version"])
    if not uri.startswith(_FETCHED):
        logger.warning(
            "KServe cannot fetch %s from %s: set deploy.storage, such as pvc://models/%s/%s, before this manifest is "
            "applied to a cluster",
            registered["uri"],
            uri,
            registered["name"],
            registered["version"],
        )
    return uri


def _picture(pairs: Path) -> tuple[str, bytes]:
    from components.dataset import Dataset

    for row in Dataset(pairs, "pairs").rows(["uid", "image", "split"]):
        if row["split"] == "test":
            return row["uid"], row["image"]["bytes"]
    raise DataError(f"{pairs}: no row of the test split to try the endpoint with")
