"""infra/cluster.sh without a cluster: its syntax, its files, and the commands that it runs, in order."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.infra.conftest import INFRA
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


# Replaces each program: it records its arguments and prints what the program would print.
RECORDER = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
case "$(basename "$0") $*" in
  "kind version") echo "kind $KIND_VERSION go1.26 linux/amd64" ;;
  "kind get clusters") ;;
  "kubectl kustomize"*) exec "$KUBECTL" "$@" ;;
  "kubectl get secret"*) exit 1 ;;
  "kubectl get deployment "*) echo "deployment.apps/one" ;;
  "kubectl apply"*" -f -") cat >> "$APPLIED" ;;
  "kubectl apply"*"/kserve.yaml") test "$(grep -c "/kserve.yaml" "$CALLS")" -gt 1 ;;
  "kubectl create namespace"*) echo "kind: Namespace" ;;
esac
"""


@pytest.mark.parametrize("mode", ["standard", "knative"])
def test_the_commands_and_their_order(tmp_path: Path, mode: str) -> None:
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl is not installed, so the overlay cannot be built")
    for program in ("kind", "docker", "kubectl", "git"):
        (tmp_path / program).write_text(RECORDER)
        (tmp_path / program).chmod(0o755)
    variables = {"CALLS": tmp_path / "calls", "APPLIED": tmp_path / "applied", "KUBECTL": kubectl, "KSERVE_MODE": mode}
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}, **VERSIONS}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VLMFLOW_REVISION": "0123456789ab"}
    done = subprocess.run([INFRA / "cluster.sh", "up"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "port-forward" in done.stdout and "warning" not in done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()

    def first(text: str) -> int:
        """Return the index of the first call that contains `text`."""
        return next(i for i, call in enumerate(calls) if text in call)

    order = [
        f"kind create cluster --name vlmflow --image {VERSIONS['KIND_NODE']}",
        "kind load docker-image localhost/vlmflow-step:0123456789ab",
        f"cert-manager/releases/download/{VERSIONS['CERT_MANAGER_VERSION']}/",
        f"env/platform-agnostic?ref={VERSIONS['KFP_VERSION']}",
        f"kserve/releases/download/{VERSIONS['KSERVE_VERSION']}/kserve.yaml",
        f"manifests/overlays/manager?ref={VERSIONS['TRAINER_VERSION']}",
        f"ray-operator/config/default?ref={VERSIONS['KUBERAY_VERSION']}",
        "kubectl create secret generic mlflow-database",
        "kubectl kustomize infra/overlays/local",
        "kubectl rollout status deployment/mlflow -n vlmflow",
    ]
    assert [first(text) for text in order] == sorted(first(text) for text in order)
    first_apply, second_apply = (i for i, call in enumerate(calls) if call.endswith("/kserve.yaml"))
    assert "clusterstoragecontainers" in "".join(
        calls[first_apply:second_apply]
    )  # the first apply fails, so the script waits
    assert any("kserve/knative" in call for call in calls) is (mode == "knative")
    assert any(VERSIONS["KNATIVE_VERSION"] in call for call in calls) is (mode == "knative")
    applied = (tmp_path / "applied").read_text()
    assert "localhost/vlmflow-step:0123456789ab" in applied and "REVISION" not in applied
    secrets = {call.split()[4]: call for call in calls if "create secret" in call}
    assert set(secrets) == {"mlflow-database", "mlflow-s3", "serving-s3", "vlmflow-s3"}
    values = {name: re.findall(r"(?:accesskey|secretkey|password)=(\w+)", call) for name, call in secrets.items()}
    assert values["mlflow-s3"] == values["serving-s3"] == values["vlmflow-s3"] != []
    assert values["mlflow-database"][0] in secrets["mlflow-database"].split("uri=")[1]


def test_the_tag_of_an_image_is_the_revision() -> None:
    from vlmflow.runtime.container_image import image_name

    assert image_name("step").rpartition(":")[2] == revision()
