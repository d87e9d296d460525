"""A model version becomes an endpoint: its manifests, and a trial on this machine or in the cluster."""

import json
from logging import getLogger
from pathlib import Path
from typing import Any

from components.deploy import runtimes, storage
from components.deploy.config import DeployConfig
from vlmflow.errors import DataError, ServiceError
from vlmflow.tracking.registry import CHAMPION, read_json

logger = getLogger(__name__)

__all__ = ["DeployConfig", "deploy"]


def deploy(
    model: Path, version: Path, pairs: Path, manifest: Path, transcript: Path, image: str, section: DeployConfig
) -> None:
    """1. Write the InferenceService and its ServingRuntime. 2. Bring them where `section.target` says; in a cluster,
    where others call the endpoint, a champion only. 3. Ask, and write down what was said.

    Args:
        model: the checkpoint that was registered.
        version: folder of `version.json`.
        pairs: a pairs dataset with a test split; its first test picture is asked about.
        manifest, transcript: folders for `inferenceservice.yaml`, `servingruntime.yaml`, and `transcript.json`.
        image: the container image that serves, where the section names none.

    Raises:
        ServiceError: the predictor does not start, the cluster does not take it, or it does not answer as it should;
            in a cluster with what was rolled back.
        DataError: there is no test picture.
        ModelError: the section's runtime does not know the model.
    """
    from components.deploy.manifest import dns_name, inference_service, write
    from vlmflow.artifacts.dataset import Dataset

    runtimes.check_architecture(model, section)
    registered = read_json(version, "version.json")
    name, image = dns_name(registered["name"]), section.image or image
    place = section.storage or storage.checkpoint_uri(registered)
    if section.target == "cluster":
        storage.check_reachable(place)
    elif reason := storage.unreachable_reason(place):
        logger.warning("before this manifest is applied to a cluster: %s", reason)
    service = inference_service(registered, place, image, section, Dataset(pairs, "pairs").card.revision)
    runtime = runtimes.serving_runtime(section, image)
    written = write(manifest, service, runtime)
    logger.info("manifests of %s: kubectl apply -f %s", registered["uri"], written)

    record: dict[str, Any] = {
        "model": name,
        "version": registered["version"],
        "target": section.target,
        "exchanges": [],
    }
    if section.target == "cluster" and registered["alias"] != CHAMPION and not section.challengers:
        record["kept_back"] = f"{registered['uri']} is a {registered['alias']}: the endpoint stays as it is"
        logger.warning("%s; deploy.challengers: true brings it there all the same", record["kept_back"])
        _write_transcript(transcript, record)
        return
    try:
        if section.target != "manifest":
            record["picture"], picture = _test_image(pairs)
            endpoint = _roll_out if section.target == "cluster" else _test_locally
            record["exchanges"] = endpoint(model, name, picture, service, runtime, section, record)
    except ServiceError:
        if "rolled_back" in record:
            _write_transcript(transcript, record)
        raise
    _write_transcript(transcript, record)


def _test_locally(
    model: Path, name: str, picture: bytes, service: Any, runtime: Any, section: DeployConfig, record: dict[str, Any]
) -> list[dict[str, Any]]:
    from components.deploy import smoke_test

    with smoke_test.local_predictor(model, name, section.timeout) as url:
        record["url"] = url
        return smoke_test.smoke_test(url, name, picture, section.prompt)


def _roll_out(
    model: Path, name: str, picture: bytes, service: Any, runtime: Any, section: DeployConfig, record: dict[str, Any]
) -> list[dict[str, Any]]:
    from components.deploy import smoke_test
    from components.deploy.cluster import Cluster
    from components.deploy.rollout import Rollout

    def smoke(url: str, host: str) -> list[dict[str, Any]]:
        return smoke_test.smoke_test(
            url, name, picture, section.prompt, openai=runtimes.OPENAI_PATHS[section.runtime], host=host
        )

    cluster = Cluster(section.place())
    record |= {"cluster": cluster.host, "namespace": cluster.namespace}
    return Rollout(cluster, service, runtime, section, smoke, record).run()


def _write_transcript(transcript: Path, record: dict[str, Any]) -> None:
    transcript.mkdir(parents=True, exist_ok=True)
    (transcript / "transcript.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _test_image(pairs: Path) -> tuple[str, bytes]:
    from vlmflow.artifacts.dataset import Dataset

    for row in Dataset(pairs, "pairs").rows(["uid", "image", "split"]):
        if row["split"] == "test":
            return row["uid"], row["image"]["bytes"]
    raise DataError(f"{pairs}: no row of the test split to try the endpoint with")
