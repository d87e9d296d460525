import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.deploy.deployment import Deployment
from components.deploy.manifest import dns_name, inference_service, write

VERSION = {"name": "vlm", "version": "3", "uri": "models:/vlm/3", "model_hash": "ab" * 32}
SCHEMA = Path(__file__).parents[3] / "shared/schemas/serving.kserve.io_v1beta1_InferenceService.json"


def service(**section: Any) -> dict[str, Any]:
    return inference_service(VERSION, "s3://bucket/vlm/3", "registry/vlmflow:abc", Deployment(**section))


@pytest.mark.skipif(not SCHEMA.exists(), reason="the cluster's schemas are not here")
def test_the_cluster_takes_the_manifest(tmp_path: Path) -> None:
    import jsonschema

    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    section = {"gpus": 2, "min_replicas": 0, "max_replicas": 4, "namespace": "models"}
    manifest = yaml.safe_load(write(tmp_path, service(**section)).read_text())
    assert list(validator.iter_errors(manifest)) == []
    manifest["spec"]["predictor"]["containers"][0]["imagee"] = "x"
    assert "imagee" in next(validator.iter_errors(manifest)).message  # the schema does refuse what it does not know


def test_the_manifest_says_which_model_and_runs_without_rights() -> None:
    manifest = service(gpus=1)
    assert manifest["metadata"]["labels"]["vlmflow.dev/model-version"] == "3"
    assert manifest["metadata"]["annotations"]["vlmflow.dev/model-sha256"] == "ab" * 32
    assert all(len(value) <= 63 for value in manifest["metadata"]["labels"].values())
    predictor = manifest["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert {"name": "STORAGE_URI", "value": "s3://bucket/vlm/3"} in container["env"]
    assert container["image"] == "registry/vlmflow:abc"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert predictor["securityContext"]["runAsNonRoot"] and not container["securityContext"]["allowPrivilegeEscalation"]


def test_the_container_is_started_with_arguments_that_the_predictor_knows() -> None:
    from components.serve.predictor import arguments

    (container,) = service()["spec"]["predictor"]["containers"]
    assert container["command"] == ["python", "-m", "components.serve.predictor"]
    options = arguments(container["args"])
    assert (options.model_name, options.model_dir, options.http_port) == ("vlm", "/mnt/models", 8080)
    assert options.enable_grpc is False


@pytest.mark.parametrize(("name", "dns"), [("vlm", "vlm"), ("My_Model v2", "my-model-v2"), ("--", "model")])
def test_names(name: str, dns: str) -> None:
    assert dns_name(name) == dns


@pytest.mark.parametrize(
    "wrong",
    [{"min_replicas": 3}, {"max_replicas": 0, "min_replicas": 0}, {"gpus": -1}, {"timeout": 0.0}, {"prompt": " "}],
)
def test_impossible_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Deployment(**wrong)
