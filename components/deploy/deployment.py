"""Deploy a model version: write its manifests, then test the endpoint on this machine or in the cluster."""

import json
from logging import getLogger
from pathlib import Path
from typing import Any

from components.deploy import runtimes, storage
from components.deploy.config import DeployConfig
from vlmflow.artifacts.json_file import read_json
from vlmflow.errors import DataError, ServiceError
from vlmflow.tracking.registry import CHAMPION

logger = getLogger(__name__)

__all__ = ["DeployConfig", "deploy"]


def deploy(
    model: Path, version: Path, pairs: Path, manifest: Path, transcript: Path, image: str, config: DeployConfig
) -> None:
    """Write the manifests, deploy them to `config.target`, test the endpoint and write the transcript.

    A version that is not the champion is deployed to a cluster only with `config.deploy_challengers`.

    Args:
        model: the checkpoint that was registered.
        version: folder of `version.json`.
        pairs: a pairs dataset with a test split; the endpoint is tested with its first test image.
        manifest: output folder of `inferenceservice.yaml` and `servingruntime.yaml`.
        transcript: output folder of `transcript.json`.
        image: the container image of the predictor, unless `config.image` names one.

    Raises:
        ServiceError: the predictor does not start, the cluster rejects the manifests, or the endpoint fails its test;
            in a cluster the message includes what was rolled back.
        DataError: there is no test image.
        ModelError: the configured runtime does not support the model.
    """
    from components.deploy.manifest import write

    runtimes.check_architecture(model, config)
    registered = read_json(version, "version.json")
    service, runtime = _build_manifests(registered, pairs, image, config)
    folder = write(manifest, service, runtime)
    logger.info("manifests of %s: kubectl apply -f %s", registered["uri"], folder)

    name = service["metadata"]["name"]
    record: dict[str, Any] = {
        "model": name,
        "version": registered["version"],
        "target": config.target,
        "exchanges": [],
    }
    try:
        if config.target == "cluster" and registered["alias"] != CHAMPION and not config.deploy_challengers:
            record["kept_back"] = f"{registered['uri']} is a {registered['alias']}, so the endpoint was not changed"
            logger.warning("%s; set deploy.deploy_challengers: true to deploy it anyway", record["kept_back"])
        elif config.target != "manifest":
            record["image"], test_image = _test_image(pairs)
            test = _roll_out if config.target == "cluster" else _test_locally
            record["exchanges"] = test(model, name, test_image, service, runtime, config, record)
    except ServiceError:
        if "rolled_back" in record:
            _write_transcript(transcript, record)
        raise
    _write_transcript(transcript, record)


def _build_manifests(registered: dict[str, Any], pairs: Path, image: str, config: DeployConfig) -> tuple[Any, Any]:
    """Return the InferenceService and the ServingRuntime (None if the cluster has it), after a check of the storage."""
    from components.deploy.manifest import check_name, dns_name, inference_service
    from vlmflow.artifacts.dataset import Dataset

    image, storage_uri = config.image or image, config.storage or storage.checkpoint_uri(registered)
    if config.target == "cluster":
        check_name(dns_name(registered["name"]))
        storage.check_reachable(storage_uri)
    elif reason := storage.unreachable_reason(storage_uri):
        logger.warning("before you apply this manifest to a cluster: %s", reason)
    service = inference_service(registered, storage_uri, image, config, Dataset(pairs, "pairs").card.revision)
    return service, runtimes.serving_runtime(config, image)


def _test_locally(
    model: Path, name: str, test_image: bytes, service: Any, runtime: Any, config: DeployConfig, record: dict[str, Any]
) -> list[dict[str, Any]]:
    from components.deploy import smoke_test

    with smoke_test.local_predictor(model, name, config.timeout) as url:
        record["url"] = url
        return smoke_test.smoke_test(url, name, test_image, config.prompt)


def _roll_out(
    model: Path, name: str, test_image: bytes, service: Any, runtime: Any, config: DeployConfig, record: dict[str, Any]
) -> list[dict[str, Any]]:
    from components.deploy import smoke_test
    from components.deploy.rollout import Rollout
    from vlmflow.runtime.kube_client import KubeClient

    def test(url: str, host: str) -> list[dict[str, Any]]:
        path = runtimes.OPENAI_PATHS[config.runtime]
        return smoke_test.smoke_test(url, name, test_image, config.prompt, openai=path, host=host)

    cluster = KubeClient(
        config.namespace_or_default(),
        needed_by="deploy.target cluster",
        namespace_setting="deploy.namespace",
        alternative="set deploy.target to local or manifest",
    )
    record |= {"cluster": cluster.host, "namespace": cluster.namespace}
    return Rollout(cluster, service, runtime, config, test, record).run()


def _write_transcript(transcript: Path, record: dict[str, Any]) -> None:
    transcript.mkdir(parents=True, exist_ok=True)
    (transcript / "transcript.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _test_image(pairs: Path) -> tuple[str, bytes]:
    """Return the uid and the encoded image of the first test row."""
    from vlmflow.artifacts.dataset import Dataset

    for row in Dataset(pairs, "pairs").rows(["uid", "image", "split"]):
        if row["split"] == "test":
            return row["uid"], row["image"]["bytes"]
    raise DataError(f"{pairs}: the test split is empty, so there is no image to test the endpoint with")
