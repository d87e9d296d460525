"""Permissions: secrets only by reference, roles without wildcards, and a network that denies all but what is used."""

import copy
import itertools
import json
import re
from typing import Any

import pytest
import yaml

from tests.infra.conftest import INFRA, OVERLAYS, Manifest, build, build_production_with_components, find, rayjob
from tests.infra.test_pods import containers, endpoint, pods
from vlmflow.runtime.code_hash import ROOT

STEP = {"workflows.argoproj.io/workflow": "end-to-end-x"}  # Argo's label on each pod of a pipeline


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


# -- secrets


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_is_in_git(overlay: str) -> None:
    assert of_kind(build(f"overlays/{overlay}"), "Secret") == []
    assert not [path for path in INFRA.rglob("*.yaml") if "secretGenerator" in path.read_text()]


def secrets(manifests: list[Manifest]) -> set[str]:
    """Return the names of all Secrets that our manifests refer to."""
    names = {s["name"] for m in of_kind(manifests, "ServiceAccount") for s in m.get("secrets", [])}
    for _, _, pod in pods(manifests):
        names |= {v["secret"]["secretName"] for v in pod.get("volumes", []) if "secret" in v}
        for container in containers(pod):
            references = [
                e["valueFrom"]["secretKeyRef"]
                for e in container.get("env", [])
                if "secretKeyRef" in e.get("valueFrom", {})
            ]
            references += [e["secretRef"] for e in container.get("envFrom", []) if "secretRef" in e]
            names |= {reference["name"] for reference in references}
    return names


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_creation_of_each_secret_is_documented(overlay: str) -> None:
    script, readme = (INFRA / "cluster.sh").read_text(), (INFRA / "README.md").read_text()
    names = secrets(build(f"overlays/{overlay}"))
    assert {"mlflow-database", "mlflow-s3", "serving-s3", "vlmflow-mlflow"} <= names
    for name in names:
        assert re.search(rf"create secret generic {name}\b", readme), name
        assert re.search(rf"\b{name}\b", script) or name == "vlmflow-mlflow"  # optional: only with basic-auth


# -- roles


def excess(rule: dict[str, Any]) -> list[str]:
    """Return the permissions of a rule that none of our components needs."""
    wildcards = [f"{key}: *" for key in ("apiGroups", "resources", "verbs") if "*" in rule.get(key, [])]
    sensitive = [
        name for name in rule.get("resources", []) if name in ("secrets", "pods/exec", "serviceaccounts/token")
    ]
    escalating = [verb for verb in rule.get("verbs", []) if verb in ("escalate", "bind", "impersonate")]
    return wildcards + sensitive + escalating


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_roles_grant_only_what_is_needed(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    roles, bindings = of_kind(manifests, "Role"), of_kind(manifests, "RoleBinding")
    assert roles and not of_kind(manifests, "ClusterRole") and not of_kind(manifests, "ClusterRoleBinding")
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
def test_excess_permissions_are_detected(wrong: dict[str, Any]) -> None:
    assert excess(wrong)


def test_a_pipeline_has_the_permissions_of_its_steps() -> None:
    rules = find(build("overlays/local"), "Role", "pipeline")["rules"]
    granted = {(r, v) for rule in rules for r, v in itertools.product(rule["resources"], rule["verbs"])}
    for resource in ("inferenceservices", "servingruntimes", "trainjobs", "rayjobs"):
        assert {(resource, verb) for verb in ("get", "list", "watch", "create", "patch", "delete")} <= granted
    assert ("pods/log", "get") in granted
    subjects = find(build("overlays/local"), "RoleBinding", "pipeline")["subjects"]
    assert subjects == [{"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "kubeflow"}]


# -- the network


def matches(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    """Whether a label selector selects `labels`, as in Kubernetes."""
    selector = selector or {}
    rules = {"In": lambda e: labels.get(e["key"]) in e["values"], "Exists": lambda e: e["key"] in labels}
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        rules[expression["operator"]](expression) for expression in selector.get("matchExpressions", [])
    )


def labels_by_owner(manifests: list[Manifest]) -> dict[str, dict[str, str]]:
    """Return the labels of each pod in our namespace by its owner, with KServe's label on the predictor."""
    service, _ = endpoint()
    by_owner = {owner: labels for owner, labels, _ in pods([*manifests, rayjob()])}
    predictor = {**service["metadata"]["labels"], **service["spec"]["predictor"].get("labels", {})}
    return {**by_owner, "predictor": {**predictor, "serving.kserve.io/inferenceservice": service["metadata"]["name"]}}


Endpoint = tuple[str, dict[str, str]]  # a namespace or IP address, and the labels of a pod there
PROFILE = "alice"  # the namespace of a user of a Kubeflow with several users


def namespace_labels(name: str) -> dict[str, str]:
    roles = {
        PROFILE: {"app.kubernetes.io/part-of": "kubeflow-profile"},
        "ingress": {"vlmflow.dev/calls-mlflow": "true"},
    }
    return {"kubernetes.io/metadata.name": name, **roles.get(name, {})}


def includes(peer: dict[str, Any], namespace: str, labels: dict[str, str]) -> bool:
    """Whether a peer of a policy in our namespace includes an endpoint."""
    if "ipBlock" in peer:
        return peer["ipBlock"]["cidr"] == f"{namespace}/32"
    own = {"matchLabels": {"kubernetes.io/metadata.name": "vlmflow"}}
    in_namespace = matches(peer.get("namespaceSelector", own), namespace_labels(namespace))
    return in_namespace and matches(peer.get("podSelector"), labels)


def allows(policy: Manifest, side: str, other: Endpoint, port: int) -> bool:
    """Whether one policy allows traffic of its pods with `other`: `side` is ingress (from) or egress (to)."""
    namespace, labels = other
    for rule in policy["spec"].get(side, []):
        peers, ports = rule.get("from" if side == "ingress" else "to"), rule.get("ports")
        if ports and port not in [entry["port"] for entry in ports]:
            continue
        if peers is None or any(includes(peer, namespace, labels) for peer in peers):
            return True
    return False


def passes(manifests: list[Manifest], source: Endpoint, target: Endpoint, port: int) -> bool:
    """Whether a connection is allowed by the egress policies of its source and the ingress policies of its target."""
    for (namespace, labels), other, side in ((source, target, "egress"), (target, source, "ingress")):
        policies = [
            policy
            for policy in of_kind(manifests, "NetworkPolicy")
            if policy["metadata"]["namespace"] == namespace
            and side.capitalize() in policy["spec"]["policyTypes"]
            and matches(policy["spec"]["podSelector"], labels)
        ]
        if policies and not any(allows(policy, side, other, port) for policy in policies):
            return False
    return True


MLFLOW, POSTGRES, S3, TRAINING, RAY = (
    "Deployment mlflow", "StatefulSet postgres", "StatefulSet s3", "TrainingRuntime vlmflow-torch", "RayJob curate",
)  # fmt: skip
CONNECTIONS = {
    ("step", MLFLOW, 5000), ("step", S3, 8333), ("step", "predictor", 8080),
    ("step of a profile", MLFLOW, 5000), ("step of a profile", S3, 8333), ("step of a profile", "predictor", 8080),
    (MLFLOW, POSTGRES, 5432), (MLFLOW, S3, 8333), ("predictor", S3, 8333),
    (TRAINING, MLFLOW, 5000), (TRAINING, S3, 8333), (RAY, MLFLOW, 5000), (RAY, S3, 8333),
    *((TRAINING, TRAINING, port) for port in (5000, 5432, 8080, 8333)),
    *((RAY, RAY, port) for port in (5000, 5432, 8080, 8333)),
}  # fmt: skip


def test_the_local_network_allows_only_the_connections_in_use() -> None:
    manifests = build("overlays/local")
    here = {name: ("vlmflow", labels) for name, labels in labels_by_owner(manifests).items()}
    steps = {"step": ("kubeflow", STEP), "step of a profile": (PROFILE, STEP), "notebook": (PROFILE, {})}
    others = {"stranger": ("default", {}), "impostor": ("default", STEP), "interface": ("kubeflow", {})}
    everyone = {**here, **steps, **others}
    allowed = {
        (source, target, port)
        for source, target, port in itertools.product(everyone, here, (5000, 5432, 8080, 8333))
        if passes(manifests, everyone[source], here[target], port)
    }
    assert allowed == CONNECTIONS


def test_the_production_network_allows_the_external_database_and_bucket() -> None:
    manifests = build("overlays/production")
    here = {name: ("vlmflow", labels) for name, labels in labels_by_owner(manifests).items()}
    external = ("", {})
    assert passes(manifests, here[MLFLOW], external, 5432) and passes(manifests, here[MLFLOW], external, 443)
    assert passes(manifests, here["predictor"], external, 443) and not passes(
        manifests, here["predictor"], external, 5432
    )
    assert passes(manifests, here[TRAINING], here[MLFLOW], 5000)
    assert not passes(manifests, ("default", {}), here[MLFLOW], 5000)


def test_knative_can_reach_the_predictors() -> None:
    manifests = build("overlays/local") + build("kserve/knative")
    predictor = ("vlmflow", labels_by_owner(build("overlays/local"))["predictor"])
    assert passes(manifests, ("knative-serving", {}), predictor, 8012)
    assert not passes(build("overlays/local"), ("knative-serving", {}), predictor, 8012)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_can_use_dns_and_nothing_else_by_default(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    dns = ("kube-system", {"k8s-app": "kube-dns"})
    node_local_dns = ("169.254.20.10", {})
    for owner, labels in labels_by_owner(manifests).items():
        for server in (dns, node_local_dns):
            assert passes(manifests, ("vlmflow", labels), server, 53), owner
        assert not passes(manifests, ("vlmflow", labels), node_local_dns, 22), owner
        assert not passes(manifests, ("vlmflow", labels), ("default", {}), 22), owner
    without_default_deny = copy.deepcopy(manifests)
    without_default_deny.remove(find(without_default_deny, "NetworkPolicy", "default-deny"))
    assert passes(without_default_deny, ("default", {}), ("vlmflow", {}), 22)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_selector_selects_a_pod(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    all_labels = list(labels_by_owner(manifests).values())
    selectors = {f"{kind} {m['metadata']['name']}": m["spec"] for kind in ("NetworkPolicy", "PodDisruptionBudget")
                 for m in of_kind(manifests, kind)}  # fmt: skip
    for owner, spec in selectors.items():
        selector = spec.get("podSelector", spec.get("selector"))
        assert any(matches(selector, labels) for labels in all_labels), owner
        for rule in spec.get("ingress", []) + spec.get("egress", []):
            for peer in rule.get("from", []) + rule.get("to", []):
                if not {"namespaceSelector", "ipBlock"} & set(peer):
                    assert any(matches(peer["podSelector"], labels) for labels in all_labels), owner
    for service in of_kind(manifests, "Service"):
        (pod,) = [
            p for _, labels, p in pods(manifests) if matches({"matchLabels": service["spec"]["selector"]}, labels)
        ]
        ports = {port["name"] for container in containers(pod) for port in container.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert not any(matches({"matchLabels": {"vlmflow.dev/role": "mlfow"}}, labels) for labels in all_labels)


@pytest.mark.parametrize("name", ["mlflow", "postgres", "s3", "ray", "training"])
def test_no_name_of_a_model_makes_its_pods_receive_the_traffic_of_a_server(name: str) -> None:
    """KServe copies the labels of an InferenceService, which contain the model's name, to its pods."""
    from components.deploy.config import DeployConfig
    from components.deploy.manifest import inference_service

    config = DeployConfig(namespace="vlmflow")
    version = {"name": name, "version": "1", "uri": f"models:/{name}/1", "model_hash": "ab" * 32}
    service = inference_service(version, "s3://vlmflow/model", "image:1", config)
    labels = {**service["metadata"]["labels"], **service["spec"]["predictor"].get("labels", {})}
    labels |= {"app": f"isvc.{name}-predictor", "serving.kserve.io/inferenceservice": name, "component": "predictor"}
    manifests = build("overlays/local")
    for owner in of_kind(manifests, "Service"):
        assert not matches({"matchLabels": owner["spec"]["selector"]}, labels), owner["metadata"]["name"]
    policies = of_kind(manifests, "NetworkPolicy")
    selecting = {p["metadata"]["name"] for p in policies if matches(p["spec"]["podSelector"], labels)}
    assert selecting == {"default-deny", "names", "predictors", "predictors-to-the-store"}


def test_mlflow_is_open_to_an_ingress_only_with_its_component() -> None:
    manifests, controller = build_production_with_components(), ("ingress", {"app": "nginx"})
    mlflow = ("vlmflow", labels_by_owner(manifests)[MLFLOW])
    assert passes(manifests, controller, mlflow, 5000) and not passes(manifests, controller, mlflow, 22)
    assert not passes(manifests, ("default", {}), mlflow, 5000)
    assert not passes(build("overlays/production"), controller, mlflow, 5000)
    (ingress,) = of_kind(manifests, "Ingress")
    (rule,) = ingress["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    service = find(manifests, "Service", backend["name"])
    assert backend["port"]["name"] in [port["name"] for port in service["spec"]["ports"]]
    (settings,) = [m["data"] for m in of_kind(manifests, "ConfigMap") if "AWS_DEFAULT_REGION" in m["data"]]
    assert settings["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == f"https://{rule['host']}"
    assert rule["host"] in settings["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_mlflow_accepts_every_name_of_its_service(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    (settings,) = [m["data"] for m in of_kind(manifests, "ConfigMap") if "AWS_DEFAULT_REGION" in m["data"]]
    names = ("mlflow", "mlflow.vlmflow", "mlflow.vlmflow.svc", "mlflow.vlmflow.svc.cluster.local")
    hosts = settings["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {f"{name}:5000" for name in names} | {"localhost:*", "127.0.0.1:*"} <= set(hosts)


def test_a_profile_has_what_its_steps_need() -> None:
    """The same as in KFP's namespace: environment, permissions and files. Its name replaces PROFILE."""
    text = json.dumps(build("overlays/production/profile")).replace("PROFILE", PROFILE)
    profile, production = json.loads(text), build("overlays/production")
    settings = find(profile, "ConfigMap", "vlmflow")
    assert settings["metadata"]["namespace"] == PROFILE
    assert settings["data"] == find(of_kind(production, "ConfigMap"), "ConfigMap", "vlmflow")["data"]
    claim = find(profile, "PersistentVolumeClaim", "datasets")
    volume = find(profile, "PersistentVolume", claim["spec"]["volumeName"])["spec"]
    assert claim["metadata"]["namespace"] == PROFILE
    assert volume["claimRef"] == {"namespace": PROFILE, "name": "datasets"}
    assert volume["nfs"] == find(production, "PersistentVolume", "datasets-vlmflow")["spec"]["nfs"]
    (binding,) = of_kind(profile, "RoleBinding")
    assert binding["metadata"]["namespace"] == "vlmflow" and binding["roleRef"]["name"] == "pipeline"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "default-editor", "namespace": PROFILE}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_is_restricted_and_has_quotas(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    labels = find(manifests, "Namespace", "vlmflow")["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}
    assert find(manifests, "ResourceQuota", "vlmflow") and find(manifests, "LimitRange", "vlmflow")
    accounts = {account["metadata"]["name"]: account for account in of_kind(manifests, "ServiceAccount")}
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    used = {pod["serviceAccountName"] for _, _, pod in pods(manifests) if "serviceAccountName" in pod}
    assert used | {"serving"} == set(accounts)


# -- what the steps rely on


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_claim_has_a_volume(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    claims = of_kind(manifests, "PersistentVolumeClaim")
    assert {claim["metadata"]["namespace"] for claim in claims} == {"vlmflow", "kubeflow"}
    files = []
    for claim in claims:
        volume = find(manifests, "PersistentVolume", claim["spec"]["volumeName"])["spec"]
        reference = {key: claim["metadata"][key] for key in ("namespace", "name")}
        assert volume["claimRef"] == reference and volume["accessModes"] == claim["spec"]["accessModes"]
        files.append(volume.get("nfs") or volume["local"])
    assert files[0] == files[1]  # a job reads what the step that started it has written
    mounted = {v["persistentVolumeClaim"]["claimName"] for _, _, pod in pods([*manifests, rayjob()])
               for v in pod.get("volumes", []) if "persistentVolumeClaim" in v}  # fmt: skip
    assert mounted == {"datasets"}


def test_the_config_map_of_the_steps_is_used_and_its_addresses_exist() -> None:
    """infra/kubeflow/placement.yaml maps each key to a variable of the step, and each address is a Service of ours."""
    placement = yaml.safe_load((INFRA / "kubeflow" / "placement.yaml").read_text())["defaults"]
    manifests = build("overlays/local")
    settings = find([m for m in manifests if m["metadata"].get("namespace") == "kubeflow"], "ConfigMap", "vlmflow")[
        "data"
    ]
    assert set(settings) <= set(placement["config"]["vlmflow"])
    server_settings = next(m for m in of_kind(manifests, "ConfigMap") if m["metadata"]["name"].startswith("mlflow-"))[
        "data"
    ]
    for key in ("MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_S3_ENDPOINT_URL"):
        assert settings[key] == server_settings[key]
    assert "vlmflow-s3" in placement["secrets"]
    for address in re.findall(r"http://(\S+?)\.vlmflow\.svc\.cluster\.local:(\d+)", yaml.safe_dump_all(manifests)):
        service = find(manifests, "Service", address[0])
        assert int(address[1]) in [port["port"] for port in service["spec"]["ports"]]


def test_jobs_log_in_to_mlflow_as_the_steps_do() -> None:
    placement = yaml.safe_load((INFRA / "kubeflow" / "placement.yaml").read_text())["defaults"]
    wanted = {variable: key for key, variable in placement["secrets"]["vlmflow-mlflow"].items()}
    checked = [
        pod for owner, _, pod in pods([*build("overlays/local"), rayjob()]) if owner.startswith(("Train", "Ray"))
    ]
    working = [c for pod in checked for c in containers(pod) if c["name"] != "ray-job-submitter"]
    assert len(working) == 3  # a training node, Ray's head and its workers
    for container in working:
        references = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in container["env"] if "valueFrom" in e}
        assert {name: reference["key"] for name, reference in references.items()} == wanted
        assert all(r["name"] == "vlmflow-mlflow" and r["optional"] is True for r in references.values())


def test_the_ray_version_matches_the_lock() -> None:
    (locked,) = re.findall(r"^ray==(.*)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == locked
