"""Rollouts to a fake cluster that runs the real predictor, and the failures that can occur there."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.deploy import rollout, smoke_test
from components.deploy.deployment import DeployConfig, deploy
from components.deploy.manifest import DIGEST
from tests.deploy.conftest import pairs, png, version
from tests.deploy.fake_kube_api import Kubernetes, Node, kubeconfig, serving
from vlmflow.errors import ServiceError

KEY = ("inferenceservices", "models", "vlm")
NAMES = {"Standard": "vlm-predictor.models.svc.cluster.local", "Knative": "vlm.models.svc.cluster.local"}
MODES = pytest.mark.parametrize("mode", ["Standard", "Knative"])

Step = Callable[..., dict[str, Any]]


@pytest.fixture
def cluster(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    """A cluster without a service. Its network is the HTTP proxy of this process."""
    kubernetes = Kubernetes(node)
    with serving(kubernetes) as address:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", address)))
        monkeypatch.setenv("HTTP_PROXY", address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(rollout, "_POLL_SECONDS", 0.05)
        yield kubernetes


@pytest.fixture
def step(tmp_path: Path, volumes: Path) -> Step:
    """Run the step `deploy` with a checkpoint, as a version, with keys of its config. Returns the transcript."""
    data = pairs(tmp_path / "pairs", "test")

    def run(name: str, number: str = "1", alias: str = "champion", **section: Any) -> dict[str, Any]:
        model, out = volumes / name, tmp_path / "out"
        given = {"target": "cluster", "namespace": "models", "storage": f"pvc://{name}", "timeout": 60.0, **section}
        registered = version(tmp_path / "version", model, number, alias)
        deploy(model, registered, data, out / "manifest", out / "transcript", "img:1", DeployConfig(**given))
        return json.loads((out / "transcript/transcript.json").read_text())

    return run


def served_checkpoints(cluster: Kubernetes, mode: str) -> set[str]:
    """Return the checkpoints that answer at the endpoint's host name, and run the smoke test."""
    names = set()
    for _ in range(100):
        pod = cluster.route(NAMES[mode])
        assert pod is not None
        names.add(pod["storage"].removeprefix("pvc://"))
    assert smoke_test.smoke_test(f"http://{NAMES[mode]}", "vlm", png(), "a red circle")[-1]["status"] == 200
    return names


def pods(cluster: Kubernetes) -> list[str]:
    return sorted(name for plural, _, name in cluster.objects if plural == "pods")


@MODES
def test_the_first_version_a_repeat_and_the_next_version(
    cluster: Kubernetes, step: Step, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMFLOW_KFP_RUN", "run-1")
    record = step("one", mode=mode)
    assert record["changed"] and record["url"] == f"http://{NAMES[mode]}" and record["cluster"].startswith("http://127")
    assert [exchange["protocol"] for exchange in record["exchanges"]] == ["OpenAI models", "V1 predict", "OpenAI chat"]
    first = cluster.objects[KEY]["metadata"]
    assert first["generation"] == 1 and first["annotations"]["vlmflow.dev/kfp-run"] == "run-1"
    before = pods(cluster)

    monkeypatch.setenv("VLMFLOW_KFP_RUN", "run-2")  # KServe would restart the pods for a changed annotation
    again = step("one", mode=mode)
    assert not again["changed"] and again["revision"] == record["revision"]
    second = cluster.objects[KEY]["metadata"]
    assert (second["generation"], second["resourceVersion"]) == (1, first["resourceVersion"])
    assert pods(cluster) == before

    new = step("two", "2", mode=mode)
    assert new["changed"] and new["revision"] != record["revision"] and served_checkpoints(cluster, mode) == {"two"}
    metadata = cluster.objects[KEY]["metadata"]
    assert metadata["annotations"]["vlmflow.dev/model-uri"] == "models:/vlm/2"
    assert metadata["annotations"]["vlmflow.dev/kfp-run"] == "run-2"
    assert not any(plural == "controllerrevisions" for plural, _, _ in cluster.objects)


@MODES
def test_a_challenger_does_not_change_the_endpoint(cluster: Kubernetes, step: Step, mode: str) -> None:
    step("one", mode=mode)
    old = json.dumps(cluster.objects[KEY])
    record = step("two", "2", alias="challenger", mode=mode)
    assert record["kept_back"] == "models:/vlm/2 is a challenger, so the endpoint was not changed"
    assert json.dumps(cluster.objects[KEY]) == old and not record["exchanges"]
    assert step("two", "2", alias="challenger", mode=mode, deploy_challengers=True)["changed"]
    assert served_checkpoints(cluster, mode) == {"two"}


@MODES
def test_a_version_that_never_gets_ready_is_rolled_back(cluster: Kubernetes, step: Step, mode: str) -> None:
    step("one", mode=mode)
    old = dict(cluster.objects[KEY]["spec"])
    cluster.faults["pvc://two"] = "never"
    message = (
        r"not ready in 3 s \(deploy\.timeout\): .*Back-off pulling image .*; rolled back to models:/vlm/1, which is"
    )
    with pytest.raises(ServiceError, match=message):
        step("two", "2", mode=mode, timeout=3.0)
    assert cluster.objects[KEY]["spec"] == old and served_checkpoints(cluster, mode) == {"one"}
    assert cluster.objects[KEY]["metadata"]["annotations"]["vlmflow.dev/model-uri"] == "models:/vlm/1"
    assert not any(plural == "controllerrevisions" for plural, _, _ in cluster.objects)


@MODES
def test_a_version_that_fails_its_smoke_test_is_rolled_back(
    cluster: Kubernetes, step: Step, mode: str, tmp_path: Path
) -> None:
    step("one", mode=mode)
    cluster.faults["pvc://two"] = "wrong"
    with pytest.raises(ServiceError, match=r"status 500: CUDA error.*; rolled back to models:/vlm/1, which is ready"):
        step("two", "2", mode=mode)
    assert served_checkpoints(cluster, mode) == {"one"}
    record = json.loads((tmp_path / "out/transcript/transcript.json").read_text())
    assert (record["version"], record["rolled_back"]) == ("2", "models:/vlm/1")


def test_a_first_version_that_fails_is_deleted(cluster: Kubernetes, step: Step) -> None:
    cluster.faults["pvc://one"] = "wrong"
    with pytest.raises(ServiceError, match="CUDA error.*; rolled back: vlm did not exist before and is deleted"):
        step("one")
    assert [key for key in cluster.objects if key[0] not in ("events",)] == []


def test_the_last_message_of_a_predictor_that_exits_is_in_the_error(cluster: Kubernetes, step: Step) -> None:
    step("one")
    with pytest.raises(ServiceError, match="failed container: .*not a checkpoint.*; rolled back to models:/vlm/1"):
        step("none", "2", timeout=3.0)


@MODES
@pytest.mark.parametrize("fault", ["", "wrong"])
def test_a_step_killed_before_the_smoke_test_is_resumed(
    cluster: Kubernetes, step: Step, mode: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step("one", mode=mode)

    def killed(*_: Any, **__: Any) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(smoke_test, "smoke_test", killed)
        with pytest.raises(SystemExit):
            step("two", "2", mode=mode)
    assert cluster.objects[KEY]["metadata"]["generation"] == 2

    if fault:  # the previous deployment is the version before the unfinished one
        cluster.faults["pvc://two"] = fault
        with pytest.raises(ServiceError, match="rolled back to models:/vlm/1, which is ready"):
            step("two", "2", mode=mode)
        assert served_checkpoints(cluster, mode) == {"one"}
    else:
        assert step("two", "2", mode=mode)["changed"]
        assert served_checkpoints(cluster, mode) == {"two"} and cluster.objects[KEY]["metadata"]["generation"] == 2
    assert not any(plural == "controllerrevisions" for plural, _, _ in cluster.objects)


def test_an_endpoint_that_fails_without_a_change_is_not_rolled_back(cluster: Kubernetes, step: Step) -> None:
    step("one")
    cluster.faults["pvc://one"] = "wrong"
    with pytest.raises(ServiceError, match="CUDA error.*; nothing was changed"):
        step("one")
    assert cluster.objects[KEY]["metadata"]["generation"] == 1


def traffic_shares(cluster: Kubernetes) -> list[int]:
    traffic = cluster.objects[KEY]["status"]["components"]["predictor"]["traffic"]
    return [target["percent"] for target in traffic]


def test_a_knative_canary_is_tested_then_promoted(
    cluster: Kubernetes, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    step("one", mode="Knative", canary=20)  # a first version has no canary
    assert traffic_shares(cluster) == [100]
    calls = []

    def recording(url: str, *arguments: Any, **options: Any) -> Any:
        calls.append((url, traffic_shares(cluster), served_checkpoints(cluster, "Knative")))
        return smoke_test_function(url, *arguments, **options)

    smoke_test_function = smoke_test.smoke_test
    monkeypatch.setattr("components.deploy.smoke_test.smoke_test", recording)
    with monkeypatch.context() as patch:
        patch.setattr(
            f"{__name__}.served_checkpoints",
            lambda cluster, mode: {cluster.route(NAMES[mode])["storage"] for _ in range(100)},
        )
        record = step("two", "2", mode="Knative", canary=20)
    canary, full = calls
    assert canary == ("http://latest-vlm-predictor.models.example.com", [20, 80], {"pvc://one", "pvc://two"})
    assert full == (f"http://{NAMES['Knative']}", [100], {"pvc://two"})
    assert record["revision"] == "vlm-predictor-00002"  # promotion creates no new revision


def test_a_knative_canary_without_promotion_keeps_its_share(cluster: Kubernetes, step: Step) -> None:
    step("one", mode="Knative")
    step("two", "2", mode="Knative", canary=20, promote=False)
    assert traffic_shares(cluster) == [20, 80]
    again = step("two", "2", mode="Knative", canary=20, promote=False)
    assert not again["changed"] and traffic_shares(cluster) == [20, 80]
    assert step("two", "2", mode="Knative")["revision"] == "vlm-predictor-00002"
    assert served_checkpoints(cluster, "Knative") == {"two"}


def test_a_knative_canary_that_fails_is_rolled_back(cluster: Kubernetes, step: Step) -> None:
    step("one", mode="Knative")
    cluster.faults["pvc://two"] = "wrong"
    with pytest.raises(ServiceError, match="CUDA error.*rolled back to models:/vlm/1"):
        step("two", "2", mode="Knative", canary=20)
    assert traffic_shares(cluster) == [100] and served_checkpoints(cluster, "Knative") == {"one"}


def test_a_standard_canary_needs_an_http_route_and_is_promoted(
    cluster: Kubernetes, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    step("one")
    with pytest.raises(ServiceError, match=r"deploy\.canary: there is no HTTPRoute vlm-predictor in models"):
        step("two", "2", canary=20)
    assert cluster.objects[KEY]["metadata"]["generation"] == 1

    cluster.objects["httproutes", "models", "vlm-predictor"] = {"metadata": {"name": "vlm-predictor"}}
    stable, calls, smoke_test_function = pods(cluster), [], smoke_test.smoke_test

    def recording(url: str, *arguments: Any, **options: Any) -> Any:
        calls.append((url, pods(cluster), cluster.objects[KEY]["spec"].get("canary")))
        return smoke_test_function(url, *arguments, **options)

    monkeypatch.setattr("components.deploy.smoke_test.smoke_test", recording)
    step("two", "2", canary=20)
    (url, running, (entry,)), full = calls
    assert url == "http://vlm-v2-predictor.models.svc.cluster.local"
    assert entry["trafficPercent"] == 20 and entry["predictor"]["model"]["storageUri"] == "pvc://two"
    assert set(stable) < set(running)  # the stable pods were not restarted
    assert full[0] == f"http://{NAMES['Standard']}" and full[2] is None
    monkeypatch.setattr("components.deploy.smoke_test.smoke_test", smoke_test_function)
    assert served_checkpoints(cluster, "Standard") == {"two"}


def test_a_standard_canary_without_promotion_keeps_its_share(cluster: Kubernetes, step: Step) -> None:
    step("one")
    cluster.objects["httproutes", "models", "vlm-predictor"] = {"metadata": {"name": "vlm-predictor"}}
    step("two", "2", canary=20, promote=False)
    service = cluster.objects[KEY]
    assert service["spec"]["predictor"]["model"]["storageUri"] == "pvc://one"
    assert service["metadata"]["annotations"]["vlmflow.dev/model-uri"] == "models:/vlm/1"
    assert service["spec"]["canary"][0]["predictor"]["annotations"]["vlmflow.dev/model-uri"] == "models:/vlm/2"
    cluster.faults["pvc://two"] = "wrong"
    with pytest.raises(ServiceError, match="CUDA error.*; nothing was changed"):
        step("two", "2", canary=20)
    cluster.faults.clear()
    step("two", "2", canary=20)
    assert served_checkpoints(cluster, "Standard") == {"two"} and "canary" not in cluster.objects[KEY]["spec"]


def test_a_standard_canary_that_fails_is_rolled_back(cluster: Kubernetes, step: Step) -> None:
    step("one")
    cluster.objects["httproutes", "models", "vlm-predictor"] = {"metadata": {"name": "vlm-predictor"}}
    cluster.faults["pvc://two"] = "wrong"
    with pytest.raises(ServiceError, match="CUDA error.*; rolled back to models:/vlm/1, which is ready"):
        step("two", "2", canary=20)
    assert served_checkpoints(cluster, "Standard") == {"one"} and "canary" not in cluster.objects[KEY]["spec"]


def test_an_endpoint_is_tested_through_an_ingress(
    cluster: Kubernetes, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingress = os.environ["HTTP_PROXY"]  # routes by the header Host
    monkeypatch.delenv("HTTP_PROXY")
    record = step("one", url=ingress)
    assert (record["url"], record["host"]) == (ingress, NAMES["Standard"])


FORBIDDEN = {
    "inferenceservices": ("patch", r"403: .*cannot patch resource \"inferenceservices\".*; grant this account"),
    "servingruntimes": ("patch", r"403: .*\"servingruntimes\".*infra/namespace/pipeline.yaml"),
    "controllerrevisions": ("patch", r"403: .*\"controllerrevisions\""),
}


@pytest.mark.parametrize("resource", FORBIDDEN)
def test_a_missing_permission_is_named(cluster: Kubernetes, step: Step, resource: str) -> None:
    verb, message = FORBIDDEN[resource]
    cluster.forbidden.add((verb, resource))
    with pytest.raises(ServiceError, match=message):
        step("one")
    assert KEY not in cluster.objects


def test_unreadable_events_do_not_hide_the_failure(cluster: Kubernetes, step: Step) -> None:
    cluster.forbidden.add(("list", "events"))
    cluster.faults["pvc://one"] = "never"
    with pytest.raises(ServiceError, match=r"minimum availability.*events cannot be read.*; rolled back: vlm did not"):
        step("one", timeout=1.0)


def test_an_api_server_outage_is_waited_out(cluster: Kubernetes, step: Step) -> None:
    cluster.outage = 3
    assert step("one")["changed"] and not cluster.outage


def test_a_cluster_without_kserve_is_named(cluster: Kubernetes, step: Step) -> None:
    del cluster.groups["serving.kserve.io/v1beta1"]
    with pytest.raises(ServiceError, match=r"the cluster has no InferenceService \(serving\.kserve\.io\); install it"):
        step("one")


def test_a_missing_namespace_is_named(cluster: Kubernetes, step: Step) -> None:
    with pytest.raises(ServiceError, match=r'namespaces "elsewhere" not found; create the namespace, or set'):
        step("one", namespace="elsewhere")


def test_an_invalid_token_is_named(
    cluster: Kubernetes, step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = kubeconfig(tmp_path / "other", os.environ["HTTP_PROXY"], token="wrong")
    monkeypatch.setenv("KUBECONFIG", str(config))
    with pytest.raises(ServiceError, match="401: Unauthorized; authentication failed; log in again"):
        step("one")


def test_a_missing_cluster_is_named(step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(
        ServiceError, match="none is configured: .*; set KUBECONFIG, or run in a pod, or set deploy.target"
    ):
        step("one")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "dead", "http://127.0.0.1:9")))
    with pytest.raises(ServiceError, match="http://127.0.0.1:9: the cluster does not answer: .*refused.*is running"):
        step("one")


def test_unreachable_storage_is_rejected(step: Step) -> None:
    with pytest.raises(ServiceError, match="KServe cannot fetch /home/me/model: set deploy.storage"):
        step("one", storage="/home/me/model")


def test_a_field_changed_by_another_manager_is_restored(cluster: Kubernetes, step: Step) -> None:
    step("one")
    spec = cluster.objects[KEY]["spec"]
    cluster.objects[KEY] = {
        **cluster.objects[KEY],
        "spec": {**spec, "predictor": {**spec["predictor"], "maxReplicas": 9}},
    }
    assert step("one")["changed"]
    assert cluster.objects[KEY]["spec"]["predictor"]["maxReplicas"] == 1
    assert cluster.objects[KEY]["spec"]["predictor"]["labels"][DIGEST]
