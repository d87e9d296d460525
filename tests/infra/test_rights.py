"""Who may do what: secrets by reference, roles without a wildcard, and a network that is shut but for its uses."""

import copy
import itertools
import re
from typing import Any

import pytest
import yaml

from tests.infra.conftest import INFRA, OVERLAYS, Manifest, build, find, rayjob
from tests.infra.test_pods import containers, endpoint, pods
from vlmflow.runtime.code_hash import ROOT

STEP = {"workflows.argoproj.io/workflow": "life-x"}  # Argo's label on each pod of a pipeline


def of(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


# -- secrets


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_lies_in_git(overlay: str) -> None:
    assert of(build(f"overlays/{overlay}"), "Secret") == []
    assert not [path for path in INFRA.rglob("*.yaml") if "secretGenerator" in path.read_text()]


def secrets(manifests: list[Manifest]) -> set[str]:
    """The names of all Secrets that our manifests refer to."""
    found = {s["name"] for m in of(manifests, "ServiceAccount") for s in m.get("secrets", [])}
    for _, _, pod in pods(manifests):
        found |= {v["secret"]["secretName"] for v in pod.get("volumes", []) if "secret" in v}
        for container in containers(pod):
            given = [
                e["valueFrom"]["secretKeyRef"]
                for e in container.get("env", [])
                if "secretKeyRef" in e.get("valueFrom", {})
            ]
            given += [e["secretRef"] for e in container.get("envFrom", []) if "secretRef" in e]
            found |= {one["name"] for one in given}
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_how_to_make_each_secret_is_said(overlay: str) -> None:
    script, readme = (INFRA / "cluster.sh").read_text(), (INFRA / "README.md").read_text()
    named = secrets(build(f"overlays/{overlay}"))
    assert {"mlflow-database", "mlflow-s3", "serving-s3"} <= named
    for name in named:
        assert re.search(rf"\b{name}\b", script) and re.search(rf"create secret generic {name}\b", readme), name


# -- roles


def excess(rule: dict[str, Any]) -> list[str]:
    """What a rule grants that none of ours needs."""
    wild = [f"{key}: *" for key in ("apiGroups", "resources", "verbs") if "*" in rule.get(key, [])]
    reach = [name for name in rule.get("resources", []) if name in ("secrets", "pods/exec", "serviceaccounts/token")]
    rise = [verb for verb in rule.get("verbs", []) if verb in ("escalate", "bind", "impersonate")]
    return wild + reach + rise


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_roles_grant_no_more_than_is_needed(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    roles, bindings = of(manifests, "Role"), of(manifests, "RoleBinding")
    assert roles and not of(manifests, "ClusterRole") and not of(manifests, "ClusterRoleBinding")
    assert [excess(rule) for role in roles for rule in role["rules"] if excess(rule)] == []
    for binding in bindings:
        find(roles, binding["roleRef"]["kind"], binding["roleRef"]["name"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"apiGroups": ["*"], "resources": ["pods"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["*"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["impersonate"]},
    ],
)
def test_a_role_that_grants_more_is_refused(wrong: dict[str, Any]) -> None:
    assert excess(wrong)


def test_a_pipeline_may_do_what_its_steps_do() -> None:
    rules = find(build("overlays/local"), "Role", "pipeline")["rules"]
    granted = {(r, v) for rule in rules for r, v in itertools.product(rule["resources"], rule["verbs"])}
    for resource in ("inferenceservices", "servingruntimes", "trainjobs", "rayjobs"):
        assert {(resource, verb) for verb in ("get", "list", "watch", "create", "patch", "delete")} <= granted
    assert ("pods/log", "get") in granted
    subjects = find(build("overlays/local"), "RoleBinding", "pipeline")["subjects"]
    assert subjects == [{"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "kubeflow"}]


# -- the network


def matches(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    """A label selector, as Kubernetes reads it."""
    selector = selector or {}
    rules = {"In": lambda e: labels.get(e["key"]) in e["values"], "Exists": lambda e: e["key"] in labels}
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        rules[expression["operator"]](expression) for expression in selector.get("matchExpressions", [])
    )


def roles(manifests: list[Manifest]) -> dict[str, dict[str, str]]:
    """The labels of each pod in our namespace, by who makes it; KServe adds its own to what `deploy` writes."""
    service, _ = endpoint()
    made = {owner: labels for owner, labels, _ in pods([*manifests, rayjob()])}
    given = {**service["metadata"]["labels"], **service["spec"]["predictor"].get("labels", {})}
    return {**made, "predictor": {**given, "serving.kserve.io/inferenceservice": service["metadata"]["name"]}}


Place = tuple[str, dict[str, str]]  # a namespace and a pod's labels there


def allows(policy: Manifest, side: str, other: Place, port: int) -> bool:
    """Whether one policy lets its pods exchange with `other`: `side` is ingress (from) or egress (to)."""
    namespace, labels = other
    for rule in policy["spec"].get(side, []):
        peers, ports = rule.get("from" if side == "ingress" else "to"), rule.get("ports")
        if ports and port not in [entry["port"] for entry in ports]:
            continue
        if peers is None or any(
            (
                matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
                if "namespaceSelector" in peer
                else namespace == "vlmflow"
            )
            and matches(peer.get("podSelector"), labels)
            for peer in peers
        ):
            return True
    return False


def passes(manifests: list[Manifest], source: Place, target: Place, port: int) -> bool:
    """Whether a connection is let out at its source and in at its target."""
    for (namespace, labels), other, side in ((source, target, "egress"), (target, source, "ingress")):
        held = [
            policy
            for policy in of(manifests, "NetworkPolicy")
            if policy["metadata"]["namespace"] == namespace
            and side.capitalize() in policy["spec"]["policyTypes"]
            and matches(policy["spec"]["podSelector"], labels)
        ]
        if held and not any(allows(policy, side, other, port) for policy in held):
            return False
    return True


MLFLOW, POSTGRES, S3, TRAINING, RAY = (
    "Deployment mlflow", "StatefulSet postgres", "StatefulSet s3", "TrainingRuntime vlmflow-torch", "RayJob curate",
)  # fmt: skip
USES = {
    ("step", MLFLOW, 5000), ("step", S3, 8333), ("step", "predictor", 8080),
    (MLFLOW, POSTGRES, 5432), (MLFLOW, S3, 8333), ("predictor", S3, 8333),
    (TRAINING, MLFLOW, 5000), (TRAINING, S3, 8333), (RAY, MLFLOW, 5000), (RAY, S3, 8333),
    *((TRAINING, TRAINING, port) for port in (5000, 5432, 8080, 8333)),
    *((RAY, RAY, port) for port in (5000, 5432, 8080, 8333)),
}  # fmt: skip


def test_on_one_machine_each_reaches_what_it_uses_and_nothing_else() -> None:
    manifests = build("overlays/local")
    here = {name: ("vlmflow", labels) for name, labels in roles(manifests).items()}
    everyone = {**here, "step": ("kubeflow", STEP), "stranger": ("default", {}), "interface": ("kubeflow", {})}
    reached = {
        (source, target, port)
        for source, target, port in itertools.product(everyone, here, (5000, 5432, 8080, 8333))
        if passes(manifests, everyone[source], here[target], port)
    }
    assert reached == USES


def test_in_production_a_database_and_a_bucket_outside_are_reached() -> None:
    manifests = build("overlays/production")
    here = {name: ("vlmflow", labels) for name, labels in roles(manifests).items()}
    out = ("", {})
    assert passes(manifests, here[MLFLOW], out, 5432) and passes(manifests, here[MLFLOW], out, 443)
    assert passes(manifests, here["predictor"], out, 443) and not passes(manifests, here["predictor"], out, 5432)
    assert passes(manifests, here[TRAINING], here[MLFLOW], 5000)
    assert not passes(manifests, ("default", {}), here[MLFLOW], 5000)


def test_behind_knative_a_predictor_is_asked_by_knative() -> None:
    manifests = build("overlays/local") + build("kserve/knative")
    predictor = ("vlmflow", roles(build("overlays/local"))["predictor"])
    assert passes(manifests, ("knative-serving", {}), predictor, 8012)
    assert not passes(build("overlays/local"), ("knative-serving", {}), predictor, 8012)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_finds_names_and_is_otherwise_shut(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    names = ("kube-system", {"k8s-app": "kube-dns"})
    for role, labels in roles(manifests).items():
        assert passes(manifests, ("vlmflow", labels), names, 53), role
        assert not passes(manifests, ("vlmflow", labels), ("default", {}), 22), role
    opened = copy.deepcopy(manifests)
    opened.remove(find(opened, "NetworkPolicy", "default-deny"))
    assert passes(opened, ("default", {}), ("vlmflow", {}), 22)  # it is that policy which shuts


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_selector_selects_something(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    made = list(roles(manifests).values())
    selectors = {f"{kind} {m['metadata']['name']}": m["spec"] for kind in ("NetworkPolicy", "PodDisruptionBudget")
                 for m in of(manifests, kind)}  # fmt: skip
    for owner, spec in selectors.items():
        selector = spec.get("podSelector", spec.get("selector"))
        assert any(matches(selector, labels) for labels in made), owner
        for rule in spec.get("ingress", []) + spec.get("egress", []):
            for peer in rule.get("from", []) + rule.get("to", []):
                if "namespaceSelector" not in peer:
                    assert any(matches(peer["podSelector"], labels) for labels in made), owner
    for service in of(manifests, "Service"):
        (pod,) = [
            p for _, labels, p in pods(manifests) if matches({"matchLabels": service["spec"]["selector"]}, labels)
        ]
        ports = {port["name"] for container in containers(pod) for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert not any(matches({"matchLabels": {"app.kubernetes.io/name": "mlfow"}}, labels) for labels in made)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_is_restricted_and_bounded(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    labels = find(manifests, "Namespace", "vlmflow")["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}
    assert find(manifests, "ResourceQuota", "vlmflow") and find(manifests, "LimitRange", "vlmflow")
    accounts = {account["metadata"]["name"]: account for account in of(manifests, "ServiceAccount")}
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    named = {pod["serviceAccountName"] for _, _, pod in pods(manifests) if "serviceAccountName" in pod}
    assert named | {"serving"} == set(accounts)


# -- what others of this repository rely on


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_claim_has_its_volume(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    claims = of(manifests, "PersistentVolumeClaim")
    assert {claim["metadata"]["namespace"] for claim in claims} == {"vlmflow", "kubeflow"}
    files = []
    for claim in claims:
        volume = find(manifests, "PersistentVolume", claim["spec"]["volumeName"])["spec"]
        named = {key: claim["metadata"][key] for key in ("namespace", "name")}
        assert volume["claimRef"] == named and volume["accessModes"] == claim["spec"]["accessModes"]
        files.append(volume.get("nfs") or volume["local"])
    assert files[0] == files[1]  # what a step writes, the job that it starts reads
    mounted = {v["persistentVolumeClaim"]["claimName"] for _, _, pod in pods([*manifests, rayjob()])
               for v in pod.get("volumes", []) if "persistentVolumeClaim" in v}  # fmt: skip
    assert mounted == {"datasets"}


def test_the_steps_are_told_what_their_config_map_says() -> None:
    """Each key becomes a variable of the step, by infra/kubeflow/placement.yaml; each address is a Service here."""
    placement = yaml.safe_load((INFRA / "kubeflow" / "placement.yaml").read_text())["defaults"]
    manifests = build("overlays/local")
    told = find([m for m in manifests if m["metadata"].get("namespace") == "kubeflow"], "ConfigMap", "vlmflow")["data"]
    assert set(told) <= set(placement["config"]["vlmflow"])
    served = next(m for m in of(manifests, "ConfigMap") if m["metadata"]["name"].startswith("mlflow-"))["data"]
    for key in ("MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_S3_ENDPOINT_URL"):
        assert told[key] == served[key]
    assert "vlmflow-s3" in placement["secrets"]
    for address in re.findall(r"http://(\S+?)\.vlmflow\.svc\.cluster\.local:(\d+)", yaml.safe_dump_all(manifests)):
        service = find(manifests, "Service", address[0])
        assert int(address[1]) in [port["port"] for port in service["spec"]["ports"]]


def test_ray_is_the_one_of_the_lock() -> None:
    (locked,) = re.findall(r"^ray==(.*)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == locked
