"""Every pod of ours is one that a restricted namespace admits, and more. Each rule is shown a pod that it refuses."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.infra.conftest import OVERLAYS, Manifest, build, rayjob

Pod = dict[str, Any]


def pods(node: Any, owner: str = "") -> Iterator[tuple[str, dict[str, str], Pod]]:
    """The pods of a manifest, of built-in and of custom kinds: name of the owner, labels, spec."""
    if isinstance(node, list):
        for item in node:
            yield from pods(item, owner)
    elif isinstance(node, dict):
        owner = owner or f"{node.get('kind')} {node.get('metadata', {}).get('name')}"
        if "containers" in node.get("spec", {}):
            yield owner, node.get("metadata", {}).get("labels", {}), node["spec"]
        else:
            for value in node.values():
                yield from pods(value, owner)


def containers(pod: Pod) -> list[dict[str, Any]]:
    return pod.get("initContainers", []) + pod["containers"]


def own(pod: Pod) -> Iterator[dict[str, Any]]:
    """Each container's security context, the pod's where it says nothing."""
    for container in containers(pod):
        yield {**pod.get("securityContext", {}), **container.get("securityContext", {})}


def is_not_root(pod: Pod) -> bool:
    return all(one.get("runAsNonRoot") is True and one.get("runAsUser", 0) > 0 for one in own(pod))


def has_no_capability(pod: Pod) -> bool:
    return all(one.get("capabilities") == {"drop": ["ALL"]} for one in own(pod))


def cannot_rise(pod: Pod) -> bool:
    return all(one.get("allowPrivilegeEscalation") is False and not one.get("privileged") for one in own(pod))


def is_read_only(pod: Pod) -> bool:
    return all(one.get("readOnlyRootFilesystem") is True for one in own(pod))


def has_seccomp(pod: Pod) -> bool:
    return all(one.get("seccompProfile") == {"type": "RuntimeDefault"} for one in own(pod))


def is_bounded(pod: Pod) -> bool:
    given = [container.get("resources", {}) for container in containers(pod)]
    return all({"cpu", "memory"} <= set(one.get(side, {})) for one in given for side in ("requests", "limits"))


def has_pinned_images(pod: Pod) -> bool:
    """By digest or by a tag that does not move; REVISION is what cluster.sh replaces."""
    tags = [re.fullmatch(r"[^@]*?(?::([^:/@]+))?(@sha256:[0-9a-f]{64})?", c["image"]) for c in containers(pod)]
    return all(tag is not None and (tag[2] or tag[1] not in (None, "latest")) for tag in tags)


def leaves_the_host_alone(pod: Pod) -> bool:
    ports = [port for container in containers(pod) for port in container.get("ports", [])]
    return not (
        any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
        or any("hostPath" in volume for volume in pod.get("volumes", []))
        or any("hostPort" in port for port in ports)
    )


def has_no_token(pod: Pod) -> bool:
    return pod.get("automountServiceAccountToken") is False


def has_no_service_links(pod: Pod) -> bool:
    """A Service named mlflow would set MLFLOW_PORT in every pod, to an address."""
    return pod.get("enableServiceLinks") is False


def refers_to_secrets(pod: Pod) -> bool:
    given = [entry for container in containers(pod) for entry in container.get("env", []) if "value" in entry]
    named = [
        entry for entry in given if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|BACKEND_STORE_URI", entry["name"])
    ]
    return not named and not any(re.search(r"//[^/\s]*:[^/\s]*@", entry["value"]) for entry in given)


Break = Callable[[Pod], object]


def context(pod: Pod) -> dict[str, Any]:
    return pod["containers"][0]["securityContext"]


RULES: dict[Callable[[Pod], bool], list[Break]] = {
    is_not_root: [
        lambda pod: pod["securityContext"].pop("runAsNonRoot"),
        lambda pod: context(pod).update(runAsUser=0),
        lambda pod: pod["securityContext"].pop("runAsUser"),
    ],
    has_no_capability: [
        lambda pod: context(pod).pop("capabilities"),
        lambda pod: context(pod)["capabilities"].update(add=["NET_ADMIN"]),
    ],
    cannot_rise: [
        lambda pod: context(pod).pop("allowPrivilegeEscalation"),
        lambda pod: context(pod).update(privileged=True),
    ],
    is_read_only: [lambda pod: context(pod).pop("readOnlyRootFilesystem")],
    has_seccomp: [lambda pod: pod["securityContext"].update(seccompProfile={"type": "Unconfined"})],
    is_bounded: [
        lambda pod: pod["containers"][0].pop("resources"),
        lambda pod: pod["containers"][0]["resources"]["limits"].pop("memory"),
        lambda pod: pod.update(initContainers=[{"name": "wait", "image": "busybox:1"}]),
    ],
    has_pinned_images: [
        lambda pod: pod["containers"][0].update(image="registry:5000/vlmflow-step"),
        lambda pod: pod["containers"][0].update(image="vlmflow-step:latest"),
    ],
    leaves_the_host_alone: [
        lambda pod: pod.update(hostNetwork=True),
        lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        lambda pod: pod["containers"][0]["ports"][0].update(hostPort=80),
    ],
    has_no_token: [lambda pod: pod.pop("automountServiceAccountToken")],
    has_no_service_links: [lambda pod: pod.pop("enableServiceLinks")],
    refers_to_secrets: [
        lambda pod: pod["containers"][0]["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        lambda pod: pod["containers"][0]["env"].append({"name": "DSN", "value": "postgresql://mlflow:pw@db/mlflow"}),
    ],
}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_pod(rule: Callable[[Pod], bool], overlay: str) -> None:
    found = list(pods([*build(f"overlays/{overlay}"), revised(rayjob())]))
    assert len(found) >= 5  # MLflow, the training node; Ray's head, workers and submitter
    assert [owner for owner, _, pod in found if not rule(pod)] == []


@pytest.mark.parametrize(
    ("rule", "spoil"), [(rule, spoil) for rule in RULES for spoil in RULES[rule]], ids=lambda f: f.__name__
)
def test_a_rule_refuses_a_pod_that_breaks_it(rule: Callable[[Pod], bool], spoil: Break) -> None:
    pod = copy.deepcopy(mlflow())
    assert all(other(pod) for other in RULES)
    spoil(pod)
    assert not rule(pod)


def mlflow() -> Pod:
    (pod,) = [pod for owner, _, pod in pods(build("overlays/local")) if owner == "Deployment mlflow"]
    return pod


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_goes_on_for_long_is_probed(overlay: str) -> None:
    for owner, _, pod in pods(build(f"overlays/{overlay}")):
        if not owner.startswith("TrainingRuntime"):  # a job ends
            assert all({"readinessProbe", "livenessProbe"} <= set(c) for c in pod["containers"]), owner


def test_our_namespace_admits_what_the_step_deploy_writes() -> None:
    """With KServe's own container, which has what infra/kserve/storage.yaml gives it."""
    service, runtime = endpoint()
    predictor = {**service["spec"]["predictor"], "containers": runtime["spec"]["containers"]}
    (fetches,) = [m["spec"] for m in build("overlays/local") if m["kind"] == "ClusterStorageContainer"]
    for pod in (predictor, {**predictor, "containers": [fetches["container"]]}):
        assert is_not_root(pod) and has_no_capability(pod) and cannot_rise(pod) and has_seccomp(pod)
        assert leaves_the_host_alone(pod)
    place = service["spec"]["predictor"]["model"]["storageUri"]
    assert any(place.startswith(f["prefix"]) for f in fetches["supportedUriFormats"] if "prefix" in f)


def endpoint() -> tuple[Manifest, Manifest]:
    """What `deploy` writes, with the account and the namespace that are here."""
    from components.deploy.config import DeployConfig
    from components.deploy.manifest import inference_service
    from components.deploy.runtimes import serving_runtime

    version = {"name": "vlm", "version": "3", "uri": "models:/vlm/3", "model_hash": "ab" * 32}
    section, image = DeployConfig(namespace="vlmflow", service_account="serving"), "localhost/vlmflow-serve:abc"
    runtime = serving_runtime(section, image)
    assert runtime is not None
    return inference_service(version, "s3://vlmflow/mlflow/1/models/m-1/artifacts/model", image, section), runtime


def revised(manifest: Manifest) -> Manifest:
    """With the images that the step fills in."""
    for _, _, pod in pods(manifest):
        for container in containers(pod):
            container["image"] += ":REVISION"
    return manifest
