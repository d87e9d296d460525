"""Security rules for all of our pods, stricter than a restricted namespace. Each rule is shown to reject a bad pod."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.infra.conftest import OVERLAYS, Manifest, as_applied, build, build_production_with_components, rayjob

Pod = dict[str, Any]


def pods(node: Any, owner: str = "") -> Iterator[tuple[str, dict[str, str], Pod]]:
    """Yield the pods in a manifest of a built-in or custom kind: the owner's name, labels, spec."""
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


def security_contexts(pod: Pod) -> Iterator[dict[str, Any]]:
    """Yield each container's security context, with the pod's values as defaults."""
    for container in containers(pod):
        yield {**pod.get("securityContext", {}), **container.get("securityContext", {})}


def runs_as_non_root(pod: Pod) -> bool:
    return all(one.get("runAsNonRoot") is True and one.get("runAsUser", 0) > 0 for one in security_contexts(pod))


def drops_all_capabilities(pod: Pod) -> bool:
    return all(one.get("capabilities") == {"drop": ["ALL"]} for one in security_contexts(pod))


def cannot_escalate_privileges(pod: Pod) -> bool:
    return all(
        one.get("allowPrivilegeEscalation") is False and not one.get("privileged") for one in security_contexts(pod)
    )


def has_a_read_only_root(pod: Pod) -> bool:
    return all(one.get("readOnlyRootFilesystem") is True for one in security_contexts(pod))


def has_a_seccomp_profile(pod: Pod) -> bool:
    return all(one.get("seccompProfile") == {"type": "RuntimeDefault"} for one in security_contexts(pod))


def has_requests_and_limits(pod: Pod) -> bool:
    resources = [container.get("resources", {}) for container in containers(pod)]
    return all({"cpu", "memory"} <= set(one.get(side, {})) for one in resources for side in ("requests", "limits"))


def has_pinned_images(pod: Pod) -> bool:
    """By digest or by a fixed tag; cluster.sh replaces REVISION."""
    tags = [re.fullmatch(r"[^@]*?(?::([^:/@]+))?(@sha256:[0-9a-f]{64})?", c["image"]) for c in containers(pod)]
    return all(tag is not None and (tag[2] or tag[1] not in (None, "latest")) for tag in tags)


def does_not_use_the_host(pod: Pod) -> bool:
    ports = [port for container in containers(pod) for port in container.get("ports", [])]
    return not (
        any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
        or any("hostPath" in volume for volume in pod.get("volumes", []))
        or any("hostPort" in port for port in ports)
    )


def has_no_token(pod: Pod) -> bool:
    return pod.get("automountServiceAccountToken") is False


def has_no_service_links(pod: Pod) -> bool:
    """With service links, the Service mlflow would set MLFLOW_PORT to an address in every pod."""
    return pod.get("enableServiceLinks") is False


def has_no_literal_credentials(pod: Pod) -> bool:
    literals = [entry for container in containers(pod) for entry in container.get("env", []) if "value" in entry]
    credentials = [
        entry for entry in literals if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|BACKEND_STORE_URI", entry["name"])
    ]
    return not credentials and not any(re.search(r"//[^/\s]*:[^/\s]*@", entry["value"]) for entry in literals)


Break = Callable[[Pod], object]


def context(pod: Pod) -> dict[str, Any]:
    return pod["containers"][0]["securityContext"]


RULES: dict[Callable[[Pod], bool], list[Break]] = {
    runs_as_non_root: [
        lambda pod: pod["securityContext"].pop("runAsNonRoot"),
        lambda pod: context(pod).update(runAsUser=0),
        lambda pod: pod["securityContext"].pop("runAsUser"),
    ],
    drops_all_capabilities: [
        lambda pod: context(pod).pop("capabilities"),
        lambda pod: context(pod)["capabilities"].update(add=["NET_ADMIN"]),
    ],
    cannot_escalate_privileges: [
        lambda pod: context(pod).pop("allowPrivilegeEscalation"),
        lambda pod: context(pod).update(privileged=True),
    ],
    has_a_read_only_root: [lambda pod: context(pod).pop("readOnlyRootFilesystem")],
    has_a_seccomp_profile: [lambda pod: pod["securityContext"].update(seccompProfile={"type": "Unconfined"})],
    has_requests_and_limits: [
        lambda pod: pod["containers"][0].pop("resources"),
        lambda pod: pod["containers"][0]["resources"]["limits"].pop("memory"),
        lambda pod: pod.update(initContainers=[{"name": "wait", "image": "busybox:1"}]),
    ],
    has_pinned_images: [
        lambda pod: pod["containers"][0].update(image="registry:5000/vlmflow-step"),
        lambda pod: pod["containers"][0].update(image="vlmflow-step:latest"),
    ],
    does_not_use_the_host: [
        lambda pod: pod.update(hostNetwork=True),
        lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        lambda pod: pod["containers"][0]["ports"][0].update(hostPort=80),
    ],
    has_no_token: [lambda pod: pod.pop("automountServiceAccountToken")],
    has_no_service_links: [lambda pod: pod.pop("enableServiceLinks")],
    has_no_literal_credentials: [
        lambda pod: pod["containers"][0]["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        lambda pod: pod["containers"][0]["env"].append({"name": "DSN", "value": "postgresql://mlflow:pw@db/mlflow"}),
    ],
}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_pod_follows_the_rule(rule: Callable[[Pod], bool], overlay: str) -> None:
    components = build_production_with_components() if overlay == "production" else []
    checked = list(pods([*build(f"overlays/{overlay}"), *components, with_tags(rayjob())]))
    assert len(checked) >= 5  # MLflow, the training node, Ray's head, workers and submitter
    assert [owner for owner, _, pod in checked if not rule(pod)] == []


@pytest.mark.parametrize(
    ("rule", "spoil"), [(rule, spoil) for rule in RULES for spoil in RULES[rule]], ids=lambda f: f.__name__
)
def test_a_rule_rejects_a_pod_that_breaks_it(rule: Callable[[Pod], bool], spoil: Break) -> None:
    pod = copy.deepcopy(mlflow_pod())
    assert all(other(pod) for other in RULES)
    spoil(pod)
    assert not rule(pod)


def mlflow_pod() -> Pod:
    (pod,) = [pod for owner, _, pod in pods(build("overlays/local")) if owner == "Deployment mlflow"]
    return pod


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_long_running_pod_has_probes(overlay: str) -> None:
    for owner, _, pod in pods(build(f"overlays/{overlay}")):
        if not owner.startswith("TrainingRuntime"):  # a job ends
            assert all({"readinessProbe", "livenessProbe"} <= set(c) for c in pod["containers"]), owner


def test_our_namespace_admits_the_pods_of_the_step_deploy() -> None:
    """Also KServe's storage initializer, with its security context of infra/kserve/storage.yaml."""
    service, runtime = endpoint()
    predictor = {**service["spec"]["predictor"], "containers": runtime["spec"]["containers"]}
    (container,) = [m for m in build("overlays/local") if m["kind"] == "ClusterStorageContainer"]
    initializer = as_applied(container)["spec"]
    for pod in (predictor, {**predictor, "containers": [initializer["container"]]}):
        assert (
            runs_as_non_root(pod)
            and drops_all_capabilities(pod)
            and cannot_escalate_privileges(pod)
            and has_a_seccomp_profile(pod)
        )
        assert does_not_use_the_host(pod)


def endpoint() -> tuple[Manifest, Manifest]:
    """Return the manifests that `deploy` writes, with an account and a namespace of ours."""
    from components.deploy.config import DeployConfig
    from components.deploy.manifest import inference_service
    from components.deploy.runtimes import serving_runtime

    version = {"name": "vlm", "version": "3", "uri": "models:/vlm/3", "model_hash": "ab" * 32}
    section, image = DeployConfig(namespace="vlmflow", service_account="serving"), "localhost/vlmflow-serve:abc"
    runtime = serving_runtime(section, image)
    assert runtime is not None
    return inference_service(version, "s3://vlmflow/mlflow/1/models/m-1/artifacts/model", image, section), runtime


def with_tags(manifest: Manifest) -> Manifest:
    """Add the image tags that the step fills in."""
    for _, _, pod in pods(manifest):
        for container in containers(pod):
            container["image"] += ":REVISION"
    return manifest
