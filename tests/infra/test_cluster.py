"""infra/cluster.sh against a fake cluster: the order of its commands, and the objects that they leave in it."""

import copy
import os
import re
import subprocess

import pytest
import yaml

from tests.infra.conftest import INFRA, RELEASED, build, find
from tests.infra.fake_cluster import FakeCluster, Refused, run_script
from tests.infra.test_pods import containers, pods
from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.container_image import revision

SCRIPT = (INFRA / "cluster.sh").read_text()
VERSIONS = dict(re.findall(r"^(\w+)=(.+)$", (INFRA / "versions.env").read_text(), re.MULTILINE))


def test_the_script_is_valid_and_prints_its_usage() -> None:
    subprocess.run(["bash", "-n", INFRA / "cluster.sh"], check=True)
    assert os.access(INFRA / "cluster.sh", os.X_OK)
    done = subprocess.run([INFRA / "cluster.sh"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "usage: infra/cluster.sh up | down\n"


def test_every_file_in_the_script_exists() -> None:
    files = set(re.findall(r"\binfra/[\w./-]*\w", SCRIPT))
    assert {"infra/versions.env", "infra/overlays/local"} <= files
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_versions_are_set_only_in_versions_env() -> None:
    used = set(re.findall(r"\$(\w+_VERSION|KIND_NODE)\b", SCRIPT))
    assert used == set(VERSIONS)
    assert not re.search(r"\d+\.\d+\.\d+", SCRIPT)
    number = r"v?\d+\.\d+\.\d+"
    for name, version in VERSIONS.items():
        pinned = rf"kindest/node:{number}@sha256:[0-9a-f]{{64}}" if name == "KIND_NODE" else rf"(knative-)?{number}"
        assert re.fullmatch(pinned, version), name
    kustomizations = [path.read_text() for path in INFRA.rglob("kustomization.yaml")]
    assert not any("github.com" in text for text in kustomizations)  # third-party manifests are applied by the script


@pytest.fixture(scope="module", params=["standard", "knative"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FakeCluster:
    """The cluster after the script has run; with Knative twice, and the second run must change nothing."""
    cluster = FakeCluster(VERSIONS["KIND_VERSION"])
    environment = {**os.environ, "KSERVE_MODE": request.param, "VLMFLOW_REVISION": "0123456789ab"}
    environment |= {"VLMFLOW_REGISTRY": "example.com", "VLMFLOW_TRAIN_IMAGE": "x"}  # the script ignores them
    done = run_script(cluster, tmp_path_factory.mktemp("programs"), environment)
    assert done.returncode == 0, done.stderr
    assert "port-forward" in done.stdout and "warning" not in done.stderr
    if request.param == "knative":
        cluster.memory_gib = 8
        first, calls = copy.deepcopy(cluster.objects), list(cluster.calls)
        done = run_script(cluster, tmp_path_factory.mktemp("programs"), environment)
        assert done.returncode == 0 and cluster.objects == first, done.stderr
        assert "docker has 8 CPUs and 8 GiB" in done.stderr
        cluster.calls = calls
    return cluster


def test_the_commands_and_their_order(run: FakeCluster) -> None:
    order = [
        "make images TARGETS=step serve",
        f"kind create cluster --name vlmflow --image {VERSIONS['KIND_NODE']}",
        "kind load docker-image localhost/vlmflow-step:0123456789ab",
        f"cert-manager/releases/download/{VERSIONS['CERT_MANAGER_VERSION']}/",
        f"env/platform-agnostic?ref={VERSIONS['KFP_VERSION']}",
        f"kserve/releases/download/{VERSIONS['KSERVE_VERSION']}/kserve.yaml",
        f"kserve/releases/download/{VERSIONS['KSERVE_VERSION']}/kserve-cluster-resources.yaml",
        f"manifests/overlays/manager?ref={VERSIONS['TRAINER_VERSION']}",
        "kubectl create secret generic mlflow-database",
        "kubectl kustomize infra/overlays/local",
        "kubectl rollout status deployment/mlflow -n vlmflow",
    ]
    positions = [next(i for i, call in enumerate(run.calls) if text in call) for text in order]
    assert positions == sorted(positions)
    knative = ("Namespace", "", "knative-serving") in run.objects
    assert any(VERSIONS["KNATIVE_VERSION"] in call for call in run.calls) is knative


def test_the_node_has_the_image_of_every_step(run: FakeCluster) -> None:
    wanted = {f"localhost/vlmflow-{target}:0123456789ab" for target in ("step", "train", "serve")}
    assert wanted == run.images
    used = {c["image"] for o in run.objects.values() for _, _, pod in pods(o) for c in containers(pod) if "image" in c}
    assert {image for image in used if image.startswith("localhost/")} <= run.images
    assert not any("REVISION" in image for image in used)


def test_released_objects_keep_their_fields_and_get_ours(run: FakeCluster) -> None:
    """Their manager and ours differ: an apply removes what its manager owned and no longer sends."""
    install = run.objects["ConfigMap", "kubeflow", "pipeline-install-config"]["data"]
    assert install["bucketName"] == "mlpipeline" and install["defaultSecurityContextRunAsUser"] == "1000"
    knative = ("Namespace", "", "knative-serving") in run.objects
    serving = run.objects["ConfigMap", "kserve", "inferenceservice-config"]["data"]
    assert (
        serving["agent"] == "a"
        and "disableIngressCreation" in serving["ingress"]
        and "accesskey" in serving["credentials"]
    )
    assert ("Knative" if knative else "Standard") in serving["deploy"]
    if knative:
        settings = run.objects["ConfigMap", "knative-serving", "config-deployment"]["data"]
        assert "queue-sidecar-image" in settings
        assert settings["registries-skipping-tag-resolving"].split(",") == [
            "kind.local",
            "ko.local",
            "dev.local",
            "localhost",
        ]
    storage = run.objects["ClusterStorageContainer", "", "default"]["spec"]
    (released,) = [o["spec"] for o in RELEASED["kserve.yaml"] if o["kind"] == "ClusterStorageContainer"]
    assert storage["container"]["securityContext"]["runAsNonRoot"] is True
    without = {key: value for key, value in storage["container"].items() if key != "securityContext"}
    assert {**storage, "container": without} == released


def test_the_released_manifests_are_where_our_settings_need_them(run: FakeCluster) -> None:
    from components.deploy.runtimes import HUGGINGFACE_RUNTIME

    assert ("ClusterServingRuntime", "", HUGGINGFACE_RUNTIME) in run.objects
    ray = [
        o for (kind, _, name), o in run.objects.items() if name.startswith("kuberay") and kind != "ClusterRoleBinding"
    ]
    assert {o["metadata"]["namespace"] for o in ray} == {"ray-system"} and len(ray) == 3
    bindings = [
        o for (kind, _, name), o in run.objects.items() if kind.endswith("Binding") and name.startswith("kuberay")
    ]
    assert {subject["namespace"] for o in bindings for subject in o["subjects"]} == {"ray-system"}


def test_the_secrets_are_random_and_agree(run: FakeCluster) -> None:
    secrets = {call.split()[4]: call for call in run.calls if "create secret" in call}
    assert set(secrets) == {"mlflow-database", "mlflow-s3", "serving-s3", "vlmflow-s3"}
    values = {name: re.findall(r"(?:accesskey|secretkey|password)=(\w+)", call) for name, call in secrets.items()}
    assert values["mlflow-s3"] == values["serving-s3"] == values["vlmflow-s3"] != []
    assert values["mlflow-database"][0] in secrets["mlflow-database"].split("uri=")[1]


@pytest.mark.parametrize(
    ("call", "text", "error"),
    [
        (["apply", "--server-side", "-k", "https://x/platform-agnostic?ref=1"], "", "27s timeout"),
        (["apply", "--server-side", "-f", "https://x/kserve.yaml"], "", 'namespaces "kserve" not found'),
        (["apply", "--server-side", "-f", "https://x/kserve-cluster-resources.yaml"], "", "no matches for kind"),
        (["apply", "--server-side", "-n", "ray-system", "-k", "https://x/ray-operator/config/default?timeout=9m"], "",
         'namespace from the provided object "default"'),
        (["apply", "--server-side", "-f", "-"], "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, namespace: b}}",
         'namespaces "b" not found'),
        (["wait", "--for=condition=established", "--timeout", "1s", "crd/rayjobs.ray.io"], "", "not found"),
    ],
)  # fmt: skip
def test_the_fake_cluster_refuses_what_a_real_one_refuses(call: list[str], text: str, error: str) -> None:
    cluster = FakeCluster("")
    cluster.call("kind", ["create", "cluster"], "")
    with pytest.raises(Refused, match=error):
        cluster.call("kubectl", call, text)


@pytest.mark.parametrize("manager", ["kubectl", "vlmflow"])
def test_one_field_manager_for_all_manifests_would_delete_the_released_fields(manager: str) -> None:
    """The manager of the released manifests is kubectl's default, `kubectl`."""
    cluster = FakeCluster("")
    cluster.call("kind", ["create", "cluster"], "")
    apply = ["apply", "--server-side", "--force-conflicts"]
    cluster.call("kubectl", [*apply, "-f", "-"], "{apiVersion: v1, kind: Namespace, metadata: {name: kubeflow}}")
    released = [o for o in RELEASED["platform-agnostic"] if o["kind"] in ("ConfigMap", "Deployment")]
    cluster.call("kubectl", [*apply, "-f", "-"], yaml.safe_dump_all(released))
    ours = find([m for m in build("overlays/local") if m["metadata"].get("namespace") == "kubeflow"], "ConfigMap",
                "pipeline-install-config")  # fmt: skip
    cluster.call("kubectl", [*apply, "--field-manager", manager, "-f", "-"], yaml.safe_dump(ours))
    status = ["rollout", "status", "deployment/ml-pipeline", "-n", "kubeflow"]
    if manager == "kubectl":
        with pytest.raises(Refused, match="no key bucketName"):
            cluster.call("kubectl", status, "")
    else:
        cluster.call("kubectl", status, "")


def test_the_tag_of_an_image_is_the_revision() -> None:
    from vlmflow.runtime.container_image import image_name

    assert image_name("step").rpartition(":")[2] == revision()


def quantity(text: str) -> float:
    """Return CPUs, or GiB of memory."""
    units = {"m": 1e-3, "Mi": 2**-10, "Gi": 1.0, "": 1.0}
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * units[unit]


@pytest.mark.parametrize(("resource", "machine", "others"), [("cpu", "CPUS", 2.8), ("memory", "MEMORY_GIB", 4.6)])
def test_the_largest_step_and_an_endpoint_fit_the_machine(resource: str, machine: str, others: float) -> None:
    """`others`: the sum of the requests in the released manifests of Kubernetes, KFP and the operators."""
    from components.deploy.config import DeployConfig
    from pipelines.placement import load

    (size,) = re.findall(rf"\b{machine}=(\d+)", SCRIPT)
    servers = [
        pod for owner, _, pod in pods(build("overlays/local")) if owner.startswith(("Deployment", "StatefulSet"))
    ]
    ours = sum(quantity(c["resources"]["requests"][resource]) for pod in servers for c in pod["containers"])
    step = max(quantity(str(getattr(resources, resource))) for resources in load().resources.values())
    endpoint = quantity(getattr(DeployConfig(), resource))
    deploy = quantity(str(getattr(load().resources["deploy"], resource)))
    assert others + ours + max(step, deploy + endpoint) <= float(size)
    quota = find(build("overlays/local"), "ResourceQuota", "vlmflow")["spec"]["hard"][f"requests.{resource}"]
    assert ours + endpoint <= quantity(quota) <= float(size) - others
