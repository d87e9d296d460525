import json
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from components.deploy import runtimes, storage
from components.deploy.config import DeployConfig
from components.deploy.manifest import DIGEST, check_name, dns_name, inference_service, write
from tests.conftest import SHARED
from tests.infra.conftest import as_applied
from vlmflow.config.recipes import load
from vlmflow.config.toleration import Toleration
from vlmflow.errors import ModelError, RecipeError, ServiceError
from vlmflow.runtime.code_hash import ROOT

VERSION = {"name": "vlm", "version": "3", "uri": "models:/vlm/3", "model_hash": "ab" * 32, "run_id": "r1"}
IMAGE = "registry/vlmflow-serve:abc"
GPU_TAINT = Toleration(key="nvidia.com/gpu", operator="Exists")
SECTIONS: list[dict[str, Any]] = [
    {},
    {"gpus": 2, "min_replicas": 2, "max_replicas": 4, "namespace": "models", "scale_metric": "cpu", "scale_target": 70},
    {"mode": "Knative", "min_replicas": 0, "scale_metric": "concurrency", "scale_target": 8},
    {"mode": "Knative", "max_replicas": 3, "scale_metric": "memory", "scale_target": 80},
    {"max_replicas": 3, "scale_metric": "prometheus", "scale_target": 5, "scale_query": "q", "prometheus": "http://p"},
    {
        "runtime": "vllm",
        "image": "vllm:1",
        "gpus": 2,
        "tolerations": (Toleration(key="nvidia.com/gpu", operator="Exists"),),
    },
    {"runtime": "huggingface", "gpus": 1, "node_selector": {"gpu": "h100"}},
]
EACH = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: ",".join(map(str, section.values())) or "plain")


def service(**section: Any) -> dict[str, Any]:
    given = DeployConfig(**section)
    return inference_service(VERSION, "s3://bucket/vlm/3", given.image or IMAGE, given, "f00")


def runtime(**section: Any) -> dict[str, Any]:
    given = DeployConfig(**section)
    manifest = runtimes.serving_runtime(given, given.image or IMAGE)
    assert manifest is not None
    return manifest


def schema_errors(manifest: dict[str, Any]) -> list[str]:
    """Validate a manifest against the schema of the operator's custom resource."""
    import jsonschema

    file = SHARED / "schemas" / f"{manifest['apiVersion'].replace('/', '_')}_{manifest['kind']}.json"
    validator = jsonschema.Draft202012Validator(json.loads(file.read_text()))
    return [error.message for error in validator.iter_errors(manifest)]


@pytest.mark.skipif(not SHARED.exists(), reason="the schemas of the custom resources are not available")
@EACH
def test_the_manifests_match_the_schemas(section: dict[str, Any], tmp_path: Path) -> None:
    given = DeployConfig(**section)
    folder = write(tmp_path, service(**section), runtimes.serving_runtime(given, given.image or IMAGE))
    manifests = [yaml.safe_load(file.read_text()) for file in sorted(folder.iterdir())]
    assert [manifest["kind"] for manifest in manifests] == (
        ["InferenceService"] if given.runtime == "huggingface" else ["InferenceService", "ServingRuntime"]
    )
    for manifest in manifests:
        assert schema_errors(manifest) == []
        manifest["spec"]["misspelt"] = "x"
        assert "misspelt" in schema_errors(manifest)[0]  # the schema does reject unknown fields


@EACH
def test_the_sdk_parses_the_manifests_without_loss(section: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from kserve import models
    from kubernetes import client

    own = import_module("kubernetes.client.models")
    for name, cls in vars(models).items():  # the client looks up classes in its own module
        if isinstance(cls, type) and not hasattr(own, name):
            monkeypatch.setattr(own, name, cls, raising=False)
    monkeypatch.setitem(
        client.ApiClient.NATIVE_TYPES_MAPPING, "V1beta1MetricQuantity", str
    )  # the SDK has no class for it
    api, given = client.ApiClient(), DeployConfig(**section)
    for manifest in (service(**section), runtimes.serving_runtime(given, given.image or IMAGE)):
        if manifest is not None:
            prefix = "V1beta1" if manifest["kind"] == "InferenceService" else "V1alpha1"
            answer = SimpleNamespace(data=json.dumps(manifest))
            read = api.deserialize(answer, prefix + manifest["kind"])
            assert api.sanitize_for_serialization(read) == manifest


def test_the_manifest_records_its_lineage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMFLOW_KFP_RUN", "kfp-7")
    metadata = service()["metadata"]
    assert metadata["labels"]["vlmflow.dev/model-version"] == "3"
    assert all(len(value) <= 63 for value in metadata["labels"].values())
    annotations = {key: value for key, value in metadata["annotations"].items() if key.startswith("vlmflow.dev/")}
    assert annotations == {
        "vlmflow.dev/model-uri": "models:/vlm/3",
        "vlmflow.dev/model-sha256": "ab" * 32,
        "vlmflow.dev/mlflow-run": "r1",
        "vlmflow.dev/data-revision": "f00",
        "vlmflow.dev/kfp-run": "kfp-7",
        "vlmflow.dev/image": IMAGE,
    }


@pytest.mark.parametrize("section", [{}, {"runtime": "vllm", "image": "vllm:1"}], ids=["vlmflow", "vllm"])
def test_the_pod_is_unprivileged(section: dict[str, Any]) -> None:
    predictor = service(**section, cpu="2", memory="8Gi", gpus=1)["spec"]["predictor"]
    assert predictor["securityContext"]["runAsNonRoot"] and predictor["securityContext"]["runAsUser"] > 0
    assert predictor["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert predictor["model"]["resources"] == {
        "requests": {"cpu": "2", "memory": "8Gi"},
        "limits": {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"},
    }
    (container,) = runtime(**section)["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tmp"}  # the only writable folder


def test_the_server_accepts_the_arguments_of_the_container() -> None:
    from vlmflow.serving.server import parse_arguments

    (container,) = runtime()["spec"]["containers"]
    assert container["image"] == IMAGE and container["command"] == ["python", "-m", "vlmflow.serving.server"]
    options = parse_arguments([argument.replace("{{.Name}}", "vlm") for argument in container["args"]])
    assert (options.model_name, options.model_dir, options.http_port) == ("vlm", "/mnt/models", 8080)
    assert options.host == "0.0.0.0" and options.grpc_port is None


def test_the_service_refers_to_its_runtime_and_storage() -> None:
    model = service()["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime()["metadata"]["name"] != runtime(image="another")["metadata"]["name"]
    assert model["modelFormat"]["name"] in [f["name"] for f in runtime()["spec"]["supportedModelFormats"]]
    assert model["storageUri"] == "s3://bucket/vlm/3"


def test_the_digest_covers_everything_that_the_pods_get(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(**section: Any) -> str:
        return service(**section)["spec"]["predictor"]["labels"][DIGEST]

    plain = digest()
    monkeypatch.setenv("VLMFLOW_KFP_RUN", "another")
    assert digest() == plain
    assert (
        len({plain, digest(image="other"), digest(cpu="3"), digest(mode="Knative"), digest(service_account="s")}) == 5
    )


@pytest.mark.parametrize(
    ("toleration", "message"),
    [
        ({"effect": "NoSchedule"}, "without `key`, set `operator: Exists`"),
        ({"key": "gpu", "operator": "Exists", "value": "h100"}, "`value: h100` needs `operator: Equal`"),
    ],
)
def test_tolerations_that_kubernetes_refuses_are_refused(toleration: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(DeployConfig, {"deploy": {"tolerations": [toleration]}}, "deploy")


def test_scaling_and_node_placement() -> None:
    knative = service(mode="Knative", max_replicas=3, scale_metric="cpu", scale_target=80)
    assert knative["metadata"]["annotations"]["autoscaling.knative.dev/class"] == "hpa.autoscaling.knative.dev"
    assert knative["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    keda = service(
        max_replicas=3, scale_metric="prometheus", scale_target=5, scale_query="sum(q)", prometheus="http://p"
    )
    assert keda["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    (metric,) = keda["spec"]["predictor"]["autoScaling"]["metrics"]
    assert metric["external"]["metric"] == {"backend": "prometheus", "query": "sum(q)", "serverAddress": "http://p"}
    recipe = {
        "deploy": {
            "node_selector": {"gpu": "h100"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        }
    }
    section = load(DeployConfig, recipe, "deploy")
    predictor = inference_service(VERSION, "s3://b", IMAGE, section)["spec"]["predictor"]
    assert predictor["nodeSelector"] == {"gpu": "h100"}
    assert predictor["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_an_architecture_that_vllm_does_not_support_is_rejected(tmp_path: Path) -> None:
    section = DeployConfig(runtime="vllm", image="vllm:1")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["TinyForConditionalGeneration"]}))
    with pytest.raises(ModelError, match="vLLM does not support the architecture TinyForConditionalGeneration"):
        runtimes.check_architecture(tmp_path, section)
    runtimes.check_architecture(tmp_path, DeployConfig())
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Idefics3ForConditionalGeneration"]}))
    runtimes.check_architecture(tmp_path, section)


def test_every_vllm_architecture_exists_in_transformers() -> None:
    import transformers

    assert [name for name in runtimes.VLLM_ARCHITECTURES if not hasattr(transformers, name)] == []


@pytest.mark.parametrize(
    ("registry_uri", "destination", "fetched"),
    [
        ("s3://bucket/1/models/m-1/artifacts", "", "s3://bucket/1/models/m-1/artifacts/artifacts/model"),
        (
            "mlflow-artifacts:/1/models/m-1/artifacts",
            "s3://b/mlflow/",
            "s3://b/mlflow/1/models/m-1/artifacts/artifacts/model",
        ),
    ],
)
def test_the_storage_uri_of_a_registered_version(
    registry_uri: str, destination: str, fetched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def get_model_version_download_uri(self, name: str, version: str) -> str:
            assert (name, version) == ("vlm", "3")
            return registry_uri

    monkeypatch.setattr("vlmflow.tracking.mlflow_store.client", Client)
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", destination)
    assert storage.checkpoint_uri(VERSION) == fetched
    storage.check_reachable(fetched)


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [("/home/me/mlartifacts/1", "set deploy.storage"), ("mlflow-artifacts:/1", "or MLFLOW_ARTIFACTS_DESTINATION")],
)
def test_storage_that_a_cluster_cannot_reach_is_rejected(uri: str, remedy: str) -> None:
    with pytest.raises(ServiceError, match=f"KServe cannot fetch {uri}: .*{remedy}"):
        storage.check_reachable(uri)


@pytest.mark.parametrize(
    ("name", "dns"), [("vlm", "vlm"), ("My_Model v2", "my-model-v2"), ("--", "model"), ("7b", "model-7b")]
)
def test_dns_names(name: str, dns: str) -> None:
    assert dns_name(name) == dns


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_replicas": 3},
        {"max_replicas": 0, "min_replicas": 0},
        {"min_replicas": 0},  # only Knative scales to zero
        {"gpus": -1},
        {"timeout": 0.0},
        {"prompt": " "},
        {"runtime": "vllm"},
        {"runtime": "huggingface", "image": "x"},
        {"url": "somewhere"},
        {"scale_metric": "rps", "scale_target": 3},
        {"scale_metric": "prometheus", "scale_target": 3, "mode": "Knative", "scale_query": "q", "prometheus": "p"},
        {"scale_metric": "prometheus", "scale_target": 3},
        {"scale_query": "q", "prometheus": "http://p"},
        {"scale_metric": "cpu"},
        {"scale_target": 5},
        {"scale_metric": "cpu", "scale_target": 120},
        {"canary": 100},
        {"canary": 20, "url": "http://ingress"},
    ],
    ids=str,
)
def test_impossible_values_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        DeployConfig(**wrong)


@pytest.mark.parametrize(
    "uri",
    ["s3://b/m", "gs://b/m", "hf://org/m", "https://host/m.tar", "http://host/m", "https://host", "pvc://models/m"]
    + [
        "hdfs://host/m",
        "webhdfs://host/m",
        "modelscope://org/m",
        "oci://host/m",
        "file:///m",
        "abfs://a/m",
        "ftp://host/m",
        "/m",
        "s3:/b/m",
    ],
)
def test_a_recipe_accepts_the_storage_that_our_storage_initializer_fetches(uri: str) -> None:
    """And volumes, which KServe mounts itself."""
    ours = yaml.safe_load((ROOT / "infra" / "kserve" / "storage.yaml").read_text())
    formats = as_applied(ours)["spec"]["supportedUriFormats"]
    fetched = any(uri.startswith(one.get("prefix", "\0")) or re.match(one.get("regex", "$^"), uri) for one in formats)
    assert (storage.unreachable_reason(uri) == "") == (fetched or uri.startswith("pvc://"))


@pytest.mark.parametrize(
    ("uri", "section", "account"),
    [
        ("s3://bucket/vlm/3", {}, "serving"),
        ("pvc://models/vlm/3", {}, "default"),
        ("s3://bucket/vlm/3", {"service_account": "mine"}, "mine"),
    ],
)
def test_the_service_account(uri: str, section: dict[str, Any], account: str) -> None:
    made = inference_service(VERSION, uri, IMAGE, DeployConfig(**section))
    assert made["spec"]["predictor"]["serviceAccountName"] == account
    accounts = yaml.safe_load_all((ROOT / "infra" / "namespace" / "accounts.yaml").read_text())
    assert account != "serving" or "serving" in [one["metadata"]["name"] for one in accounts]


def services() -> list[dict[str, Any]]:
    """The Services of our manifests; endpoints are in the same namespace."""
    files = [path for path in (ROOT / "infra").rglob("*.yaml") if "kind: Service\n" in path.read_text()]
    found = [one for path in files for one in yaml.safe_load_all(path.read_text()) if one["kind"] == "Service"]
    assert "mlflow" in [one["metadata"]["name"] for one in found]
    return found


@pytest.mark.parametrize("service", services(), ids=lambda one: one["metadata"]["name"])
def test_no_other_service_takes_an_endpoint_for_its_own(service: dict[str, Any]) -> None:
    """A model may have the name of a Service: its pods must not be selected, and its endpoint must not replace it."""
    name, selector = service["metadata"]["name"], service["spec"]["selector"]
    made = inference_service({**VERSION, "name": name.upper()}, "s3://b/m", IMAGE, DeployConfig())
    labels = {**made["metadata"]["labels"], **made["spec"]["predictor"]["labels"]}  # KServe copies both to the pods
    assert not selector.items() <= labels.items()
    with pytest.raises(ServiceError, match=f"register.name: .*'{name}'.*choose another name"):
        check_name(dns_name(name.upper()))
    check_name("vlm")
