"""A version goes to a cluster, over HTTP to a stand-in that really runs the predictor; and what goes wrong there."""

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
from tests.deploy.fake_cluster import Kubernetes, Node, kubeconfig, serving
from vlmflow.errors import ServiceError

KEY = ("inferenceservices", "models", "vlm")
NAMES = {"Standard": "vlm-predictor.models.svc.cluster.local", "Knative": "vlm.models.svc.cluster.local"}
MODES = pytest.mark.parametrize("mode", ["Standard", "Knative"])

Step = Callable[..., dict[str, Any]]


@pytest.fixture
def cluster(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    """A cluster without a service yet; its network is this process's proxy."""
    kubernetes = Kubernetes(node)
    with serving(kubernetes) as address:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", address)))
        monkeypatch.setenv("HTTP_PROXY", address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(rollout, "_POLL", 0.05)
        yield kubernetes


@pytest.fixture
def step(tmp_path: Path, volumes: Path) -> Step:
    """The step `deploy` to the cluster: which checkpoint, as which version, and the section."""
    data = pairs(tmp_path / "pairs", "test")

    def run(name: str, number: str = "1", alias: str = "champion", **section: Any) -> dict[str, Any]:
        model, out = volumes / name, tmp_path / "out"
        given = {"target": "cluster", "namespace": "models", "storage": f"pvc://{name}", "timeout": 60.0, **section}
        registered = version(tmp_path / "version", model, number, alias)
        deploy(model, registered, data, out / "manifest", out / "transcript", "img:1", DeployConfig(**given))
        return json.loads((out / "transcript/transcript.json").read_text())

    return run


def serves(cluster: Kubernetes, mode: str) -> set[str]:
    """Which storage answers at the endpoint's own name; each answers as it should."""
    found = set()
    for _ in range(100):
        pod = cluster.route(NAMES[mode])
        assert pod is not None
        found.add(pod["storage"].removeprefix("pvc://"))
    assert smoke_test.smoke_test(f"http://{NAMES[mode]}", "vlm", png(), "a red circle")[-1]["status"] == 200
    return found


def pods(cluster: Kubernetes) -> list[str]:
    return sorted(name for plural, _, name in cluster.objects if plural == "pods")


@MODES
def test_first_again_and_the_next(cluster: Kubernetes, step: Step, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMFLOW_KFP_RUN", "run-1")
    record = step("one", mode=mode)
    assert record["changed"] and record["url"] == f"http://{NAMES[mode]}" and record["cluster"].startswith("http://127")
    assert [exchange["protocol"] for exchange in record["exchanges"]] == ["OpenAI models", "V1 predict", "OpenAI chat"]
    first = cluster.objects[KEY]["metadata"]
    assert first["generation"] == 1 and first["annotations"]["vlmflow.dev/kfp-run"] == "run-1"
    before = pods(cluster)

    monkeypatch.setenv("VLMFLOW_KFP_RUN", "run-2")  # KServe would start the pods anew for another annotation
    again = step("one", mode=mode)
    assert not again["changed"] and again["revision"] == record["revision"]
    second = cluster.objects[KEY]["metadata"]
    assert (second["generation"], second["resourceVersion"]) == (1, first["resourceVersion"])
    assert pods(cluster) == before

    new = step("two", "2", mode=mode)
    assert new["changed"] and new["revision"] != record["revision"] and serves(cluster, mode) == {"two"}
    metadata = cluster.objects[KEY]["metadata"]
    assert metadata["annotations"]["vlmflow.dev/model-uri"] == "models:/vlm/2"
    assert metadata["annotations"]["vlmflow.dev/kfp-run"] == "run-2"
    assert not any(plural == "controllerrevisions" for plural, _, _ in cluster.objects)


@MODES
def test_a_challenger_leaves_the_endpoint_as_it_is(cluster: Kubernetes, step: Step, mode: str) -> None:
    step("one", mode=mode)
    old = json.dumps(cluster.objects[KEY])
    record = step("two", "2", alias="challenger", mode=mode)
    assert record["kept_back"] == "models:/vlm/2 is a challenger: the endpoint stays as it is"
    assert json.dumps(cluster.objects[KEY]) == old and not record["exchanges"]
    assert step("two", "2", alias="challenger", mode=mode, challengers=True)["changed"]
    assert serves(cluster, mode) == {"two"}


@MODES
def test_never_ready_goes_back(cluster: Kubernetes, step: Step, mode: str) -> None:
    step("one", mode=mode)
    old = dict(cluster.objects[KEY]["spec"])
    cluster.faults["pvc://two"] = "never"
    told = r"not ready in 3 s \(deploy\.timeout\): .*Back-off pulling image .*; rolled back to models:/vlm/1, which is"
    with pytest.raises(ServiceError, match=told):
        step("two", "2", mode=mode, timeout=3.0)
    assert cluster.objects[KEY]["spec"] == old and serves(cluster, mode) == {"one"}
    assert cluster.objects[KEY]["metadata"]["annotations"]["vlmflow.dev/model-uri"] == "models:/vlm/1"
    assert not any(plural == "controllerrevisions" for plural, _, _ in cluster.objects)


@MODES
def test_a_wrong_answer_goes_back(cluster: Kubernetes, step: Step, mode: str, tmp_path: Path) -> None:
    step("one", mode=mode)
    cluster.faults["pvc://two"] = "wrong"
    with pytest.raises(ServiceError, match=r"status 500: CUDA error.*; rolled back to models:/vlm/1, which is ready"):
        step("two", "2", mode=mode)
    assert serves(cluster, mode) == {"one"}
    record = json.loads((tmp_path / "out/transcript/transcript.json").read_text())
    assert (record["version"], record["rolled_back"]) == ("2", "models:/vlm/1")


def test_a_first_one_that_fails_is_deleted(cluster: Kubernetes, step: Step) -> None:
    cluster.faults["pvc://one"] = "wrong"
    with pytest.raises(ServiceError, match="CUDA error.*; rolled back: vlm was not there before and is deleted"):
        step("one")
    assert [key for key in cluster.objects if key[0] not in ("events",)] == []


def test_a_predictor_that_ends_is_told_with_its_words(cluster: Kubernetes, step: Step) -> None:
    step("one")
    with pytest.raises(ServiceError, match="failed container: .*no checkpoint here.*; rolled back to models:/vlm/1"):
        step("none", "2", timeout=3.0)


@MODES
@pytest.mark.parametrize("fault", ["", "wrong"])
def test_killed_before_the_smoke_test(
    cluster: Kubernetes, step: Step, mode: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step("one", mode=mode)

    def killed(*_: Any, **__: Any) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(smoke_test, "converse", killed)
        with pytest.raises(SystemExit):
            step("two", "2", mode=mode)
    assert cluster.objects[KEY]["metadata"]["generation"] == 2

    if fault:  # what was there before is not the half deployment, but the version before it
        cluster.faults["pvc://two"] = fault
        with pytest.raises(ServiceError, match="rolled back to models:/vlm/1, which is ready"):
            step("two", "2", mode=mode)
        assert serves(cluster, mode) == {"one"}
    else:
        assert step("two", "2", mode=mode)["changed"]
        assert serves(cluster, mode) == {"two"} and cluster.objects[KEY]["metadata"]["generation"] == 2
    assert not any(plural == "controllerrevisions" for plural, _, _ in cluster.objects)


def test_an_endpoint_that_broke_by_itself_is_left_as_it_is(cluster: Kubernetes, step: Step) -> None:
    step("one")
    cluster.faults["pvc://one"] = "wrong"
    with pytest.raises(ServiceError, match="CUDA error.*; nothing was changed"):
        step("one")
    assert cluster.objects[KEY]["metadata"]["generation"] == 1


def shares(cluster: Kubernetes) -> list[int]:
    traffic = cluster.objects[KEY]["status"]["components"]["predictor"]["traffic"]
    return [each["percent"] for each in traffic]


def test_a_canary_of_knative(cluster: Kubernetes, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    step("one", mode="Knative", canary=20)  # nothing to be a canary beside
    assert shares(cluster) == [100]
    seen = []

    def asked(url: str, *given: Any, **options: Any) -> Any:
        seen.append((url, shares(cluster), serves(cluster, "Knative")))
        return converse(url, *given, **options)

    converse = smoke_test.smoke_test
    monkeypatch.setattr("components.deploy.smoke_test.converse", asked)
    with monkeypatch.context() as patch:
        patch.setattr(
            f"{__name__}.serves", lambda cluster, mode: {cluster.route(NAMES[mode])["storage"] for _ in range(100)}
        )
        record = step("two", "2", mode="Knative", canary=20)
    canary, whole = seen
    assert canary == ("http://latest-vlm-predictor.models.example.com", [20, 80], {"pvc://one", "pvc://two"})
    assert whole == (f"http://{NAMES['Knative']}", [100], {"pvc://two"})
    assert record["revision"] == "vlm-predictor-00002"  # promoting makes no other


def test_a_canary_that_is_not_promoted(cluster: Kubernetes, step: Step) -> None:
    step("one", mode="Knative")
    step("two", "2", mode="Knative", canary=20, promote=False)
    assert shares(cluster) == [20, 80]
    again = step("two", "2", mode="Knative", canary=20, promote=False)
    assert not again["changed"] and shares(cluster) == [20, 80]
    assert step("two", "2", mode="Knative")["revision"] == "vlm-predictor-00002"
    assert serves(cluster, "Knative") == {"two"}


def test_a_canary_that_answers_wrongly(cluster: Kubernetes, step: Step) -> None:
    step("one", mode="Knative")
    cluster.faults["pvc://two"] = "wrong"
    with pytest.raises(ServiceError, match="CUDA error.*rolled back to models:/vlm/1"):
        step("two", "2", mode="Knative", canary=20)
    assert shares(cluster) == [100] and serves(cluster, "Knative") == {"one"}


def test_a_canary_in_standard_mode(cluster: Kubernetes, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    step("one")
    with pytest.raises(ServiceError, match=r"deploy\.canary: there is no HTTPRoute vlm-predictor in models"):
        step("two", "2", canary=20)
    assert cluster.objects[KEY]["metadata"]["generation"] == 1

    cluster.objects["httproutes", "models", "vlm-predictor"] = {"metadata": {"name": "vlm-predictor"}}
    stable, seen, converse = pods(cluster), [], smoke_test.smoke_test

    def asked(url: str, *given: Any, **options: Any) -> Any:
        seen.append((url, pods(cluster), cluster.objects[KEY]["spec"].get("canary")))
        return converse(url, *given, **options)

    monkeypatch.setattr("components.deploy.smoke_test.converse", asked)
    step("two", "2", canary=20)
    (url, running, (entry,)), whole = seen
    assert url == "http://vlm-v2-predictor.models.svc.cluster.local"
    assert entry["trafficPercent"] == 20 and entry["predictor"]["model"]["storageUri"] == "pvc://two"
    assert set(stable) < set(running)  # the stable ones were not started anew
    assert whole[0] == f"http://{NAMES['Standard']}" and whole[2] is None
    monkeypatch.setattr("components.deploy.smoke_test.converse", converse)
    assert serves(cluster, "Standard") == {"two"}


def test_a_canary_in_standard_mode_that_stays(cluster: Kubernetes, step: Step) -> None:
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
    assert serves(cluster, "Standard") == {"two"} and "canary" not in cluster.objects[KEY]["spec"]


def test_a_canary_in_standard_mode_that_answers_wrongly(cluster: Kubernetes, step: Step) -> None:
    step("one")
    cluster.objects["httproutes", "models", "vlm-predictor"] = {"metadata": {"name": "vlm-predictor"}}
    cluster.faults["pvc://two"] = "wrong"
    with pytest.raises(ServiceError, match="CUDA error.*; rolled back to models:/vlm/1, which is ready"):
        step("two", "2", canary=20)
    assert serves(cluster, "Standard") == {"one"} and "canary" not in cluster.objects[KEY]["spec"]


def test_through_an_ingress(cluster: Kubernetes, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    ingress = os.environ["HTTP_PROXY"]  # answers by the header Host too
    monkeypatch.delenv("HTTP_PROXY")
    record = step("one", url=ingress)
    assert (record["url"], record["host"]) == (ingress, NAMES["Standard"])


REFUSALS = {
    "inferenceservices": ("patch", r"403: .*cannot patch resource \"inferenceservices\".*; give this account the verb"),
    "servingruntimes": ("patch", r"403: .*\"servingruntimes\".*infra/namespace/pipeline.yaml"),
    "controllerrevisions": ("patch", r"403: .*\"controllerrevisions\""),
}


@pytest.mark.parametrize("resource", REFUSALS)
def test_forbidden(cluster: Kubernetes, step: Step, resource: str) -> None:
    verb, told = REFUSALS[resource]
    cluster.forbidden.add((verb, resource))
    with pytest.raises(ServiceError, match=told):
        step("one")
    assert KEY not in cluster.objects


def test_events_that_may_not_be_read_hide_nothing(cluster: Kubernetes, step: Step) -> None:
    cluster.forbidden.add(("list", "events"))
    cluster.faults["pvc://one"] = "never"
    with pytest.raises(ServiceError, match=r"minimum availability.*events cannot be read.*; rolled back: vlm was not"):
        step("one", timeout=1.0)


def test_an_api_server_that_is_away_for_a_while_is_waited_for(cluster: Kubernetes, step: Step) -> None:
    cluster.outage = 3
    assert step("one")["changed"] and not cluster.outage


def test_no_kserve(cluster: Kubernetes, step: Step) -> None:
    del cluster.groups["serving.kserve.io/v1beta1"]
    with pytest.raises(ServiceError, match=r"the cluster has no InferenceService \(serving\.kserve\.io\); install it"):
        step("one")


def test_no_namespace(cluster: Kubernetes, step: Step) -> None:
    with pytest.raises(ServiceError, match=r'namespaces "elsewhere" not found; make the namespace, or set'):
        step("one", namespace="elsewhere")


def test_an_unknown_token(cluster: Kubernetes, step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = kubeconfig(tmp_path / "other", os.environ["HTTP_PROXY"], token="wrong")
    monkeypatch.setenv("KUBECONFIG", str(config))
    with pytest.raises(ServiceError, match="401: Unauthorized; the cluster does not know us; log in again"):
        step("one")


def test_no_cluster(step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    with pytest.raises(
        ServiceError, match="no cluster is named: .*; set KUBECONFIG, run in a pod, or set deploy.target"
    ):
        step("one")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "dead", "http://127.0.0.1:9")))
    with pytest.raises(ServiceError, match="http://127.0.0.1:9: the cluster does not answer: .*refused.*is it up"):
        step("one")


def test_storage_that_no_cluster_reaches(step: Step) -> None:
    with pytest.raises(ServiceError, match="KServe cannot fetch /home/me/model: set deploy.storage"):
        step("one", storage="/home/me/model")


def test_what_another_changed_is_put_right(cluster: Kubernetes, step: Step) -> None:
    step("one")
    spec = cluster.objects[KEY]["spec"]
    cluster.objects[KEY] = {
        **cluster.objects[KEY],
        "spec": {**spec, "predictor": {**spec["predictor"], "maxReplicas": 9}},
    }
    assert step("one")["changed"]
    assert cluster.objects[KEY]["spec"]["predictor"]["maxReplicas"] == 1
    assert cluster.objects[KEY]["spec"]["predictor"]["labels"][DIGEST]
