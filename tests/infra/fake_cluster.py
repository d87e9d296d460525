"""A cluster for infra/cluster.sh: it answers kubectl, kind and docker, and refuses what a real one refuses.

Each program is a script that sends its arguments to this process, so that a call costs milliseconds. Refused are
objects of a namespace or kind that does not exist (yet), a namespace that contradicts `-n`, a conflict between field
managers, an object whose webhook is not ready, a merged object without a required field, and a git clone with
kustomize's short default timeout. A Deployment is ready when the keys of ConfigMaps and the images that it needs exist.
"""

import shutil
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import server_side_apply
from tests.infra.conftest import RELEASED
from tests.infra.test_pods import containers, pods
from vlmflow.runtime.code_hash import ROOT

Object = dict[str, Any]
Key = tuple[str, str, str]  # kind, namespace ("" if the kind has none), name
PROGRAMS = ("docker", "git", "kind", "kubectl", "make")
STUB = """#!/bin/bash
exec 3<> /dev/tcp/127.0.0.1/$FAKE_CLUSTER
printf '%s\\x1f' "$(basename "$0")" "$@" >&3
case "$*" in *"-f -") printf '\\x1e'; cat ;; esac >&3
printf '\\x04' >&3
IFS= read -r code <&3
if [ "$code" = 0 ]; then cat <&3; else cat <&3 >&2; fi
exit "$code"
"""
_CLUSTER_WIDE = ("Namespace", "PersistentVolume", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition",
                 "ValidatingWebhookConfiguration", "ClusterServingRuntime", "ClusterStorageContainer")  # fmt: skip


class Refused(Exception):
    """The error message of a program."""


class FakeCluster:
    """The state of the cluster.

    calls: the command lines, in order.
    objects: every object by its key.
    images: names of the images that the node has.
    """

    def __init__(self, kind_version: str) -> None:
        kubectl = shutil.which("kubectl")
        if not kubectl:
            pytest.skip("kubectl is not installed, so the manifests cannot be built")
        self.kubectl, self.kind_version = kubectl, kind_version
        self.calls: list[str] = []
        self.objects: dict[Key, Object] = {}
        self.owners: dict[Key, server_side_apply.Owners] = {}
        self.images: set[str] = set()
        self.ready: set[str] = set()  # established definitions, and workloads whose rollout was waited for
        self.trusted: set[str] = set()  # webhooks whose certificate the API server trusts
        self.clusters, self.cpus, self.memory_gib = "", 8, 16

    def call(self, program: str, arguments: list[str], text: str) -> str:
        """Return the output of a program, or raise Refused."""
        self.calls.append(" ".join([program, *arguments]))
        match program, arguments:
            case "kind", ["version"]:
                return f"kind {self.kind_version} go1.26 linux/amd64\n"
            case "kind", ["get", "clusters"]:
                return self.clusters
            case "kind", ["create", "cluster", *_]:
                self.clusters = "vlmflow\n"
                self.objects = {("Namespace", "", name): {} for name in ("default", "kube-system")}
            case "kind", ["load", "docker-image", image, *_]:
                self.images.add(image)
            case "docker", ["info", *_]:
                return f"{self.cpus} {self.memory_gib << 30}\n"
            case "docker", [*_, "tag", "--force", source, target]:
                if source not in self.images:
                    raise Refused(f"ctr: image {source!r}: not found")
                self.images.add(target)
            case "kubectl", ["kustomize", folder]:
                return self._kustomize(folder)
            case "kubectl", ["apply", *options]:
                return self._apply(options, text)
            case "kubectl", ["create", "namespace", name, "--dry-run=client", "-o", "yaml"]:
                return yaml.safe_dump({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
            case "kubectl", ["create", "--dry-run=server", "-f", "-"]:
                manifest = yaml.safe_load(text)
                self._admit(manifest, self._definitions(), manifest)
            case "kubectl", ["create", "secret", "generic", name, "-n", namespace, *_]:
                self._store(_object("Secret", name, namespace))
            case "kubectl", ["get", "secret", name, "-n", namespace]:
                if ("Secret", namespace, name) not in self.objects:
                    raise Refused(f'secrets "{name}" not found')
            case "kubectl", ["get", "deployment", *names, "-n", namespace, "-o", "name"]:
                found = [k for k in self.objects if k[:2] == ("Deployment", namespace) and k[2] in (names or [k[2]])]
                return "".join(f"deployment.apps/{name}\n" for _, _, name in found)
            case "kubectl", ["wait", "--for=condition=established", "--timeout", _, *definitions]:
                for name in definitions:
                    if ("CustomResourceDefinition", "", name.removeprefix("crd/")) not in self.objects:
                        raise Refused(f'customresourcedefinitions "{name}" not found')
                    self.ready.add(name.removeprefix("crd/"))
            case "kubectl", ["rollout", "status", *options]:
                self._roll_out(next(o for o in options if "/" in o), namespace=options[options.index("-n") + 1])
            case ("kubectl", ["rollout", "restart", *_] | ["config", *_]) | ("docker" | "git" | "make", _):
                pass
            case _:
                raise Refused(f"unexpected call: {self.calls[-1]}")
        return ""

    def _apply(self, options: list[str], text: str) -> str:
        force, manager, namespace = "--force-conflicts" in options, "kubectl", ""
        assert "--server-side" in options
        if "--field-manager" in options:
            manager = options[options.index("--field-manager") + 1]
        if "-n" in options:
            namespace = options[options.index("-n") + 1]
        source = options[-1]
        if source == "-":
            manifests = list(yaml.load_all(text, yaml.CSafeLoader))
        elif source.startswith(("https://", "github.com/")):
            manifests = self._released(source, "-k" in options)
        else:
            manifests = list(
                yaml.safe_load_all(self._kustomize(source) if "-k" in options else Path(source).read_text())
            )
        errors, definitions = [], self._definitions()
        for manifest in manifests:
            try:
                own = manifest["metadata"].get("namespace", "")
                if namespace and own and own != namespace:
                    raise Refused(f'the namespace from the provided object "{own}" does not match "{namespace}"')
                key = _key(manifest)
                live = self.objects.get(key, {})
                merged, owners = server_side_apply.apply(live, manifest, self.owners.get(key, {}), manager, force)
                self._admit(manifest, definitions, merged)
                self._store(merged)
                self.owners[key] = owners
            except (Refused, server_side_apply.Conflict) as error:
                errors.append(str(error))
        if errors:
            raise Refused("\n".join(errors))
        return ""

    def _admit(self, manifest: Object, definitions: set[str], merged: Object) -> None:
        kind, group = manifest["kind"], manifest["apiVersion"].rpartition("/")[0]
        namespace = manifest["metadata"].get("namespace", "")
        builtin = "." not in group or (group.endswith(".k8s.io") and group != "app.k8s.io")
        plural = f"{kind.lower()}s.{group}"
        if not builtin and plural not in definitions:
            self.ready.add(plural)  # the next call finds it, if it exists
            raise Refused(f'no matches for kind "{kind}" in version "{manifest["apiVersion"]}"')
        if kind not in _CLUSTER_WIDE and ("Namespace", "", namespace) not in self.objects:
            raise Refused(f'namespaces "{namespace}" not found')
        for configuration in [o for k, o in self.objects.items() if k[0] == "ValidatingWebhookConfiguration"]:
            for webhook in configuration["webhooks"]:
                service = webhook["clientConfig"]["service"]
                if kind not in webhook["kinds"] or builtin:
                    continue
                if service not in self.ready:
                    raise Refused(f"failed calling webhook: no endpoints available for service {service}")
                if service not in self.trusted:  # cert-manager adds the certificate a moment later
                    self.trusted.add(service)
                    raise Refused("failed calling webhook: x509: certificate signed by unknown authority")
        if kind == "ClusterStorageContainer" and not {"container", "supportedUriFormats"} <= set(merged["spec"]):
            raise Refused("ClusterStorageContainer is invalid: spec.supportedUriFormats: Required value")

    def _roll_out(self, workload: str, namespace: str) -> None:
        kind, name = workload.replace(".apps", "").split("/")
        kind = {"deployment": "Deployment", "statefulset": "StatefulSet"}[kind]
        if (kind, namespace, name) not in self.objects:
            raise Refused(f'{kind} "{name}" not found')
        for _, _, pod in pods(self.objects[kind, namespace, name]):
            for container in containers(pod):
                image = container.get("image", "")
                if image.startswith("localhost/") and image not in self.images:
                    raise Refused(f"{workload}: timed out: ErrImagePull {image}")
                for entry in container.get("env", []):
                    wanted = entry.get("valueFrom", {}).get("configMapKeyRef")
                    if wanted and wanted["key"] not in self.objects["ConfigMap", namespace, wanted["name"]]["data"]:
                        raise Refused(f"{workload}: timed out: CreateContainerConfigError: no key {wanted['key']}")
        self.ready.add(f"{namespace}/{name}")

    def _definitions(self) -> set[str]:
        known = {name for kind, _, name in self.objects if kind == "CustomResourceDefinition"}
        return known & self.ready

    def _store(self, manifest: Object) -> None:
        self.objects[_key(manifest)] = manifest

    def _released(self, url: str, clone: bool) -> list[Object]:
        path, _, query = url.partition("?")
        if clone and "timeout=" not in query:
            raise Refused("hit 27s timeout running 'git fetch'")
        return next(manifests for end, manifests in RELEASED.items() if path.endswith(f"/{end}"))

    def _kustomize(self, folder: str) -> str:
        """Build a folder with the real kubectl; a resource at a URL is replaced by what is released there."""
        file = Path(folder) / "kustomization.yaml"
        content = yaml.safe_load(file.read_text())
        urls = [resource for resource in content["resources"] if resource.startswith("https://")]
        with tempfile.TemporaryDirectory() as target:
            if urls:
                (Path(target) / "released.yaml").write_text(yaml.safe_dump_all(self._released(urls[0], clone=True)))
                (Path(target) / file.name).write_text(yaml.safe_dump({**content, "resources": ["released.yaml"]}))
            built = target if urls else folder
            return subprocess.run([self.kubectl, "kustomize", built], check=True, capture_output=True, text=True).stdout


def _key(manifest: Object) -> Key:
    kind, metadata = manifest["kind"], manifest["metadata"]
    return kind, "" if kind in _CLUSTER_WIDE else metadata.get("namespace", "default"), metadata["name"]


def _object(kind: str, name: str, namespace: str) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}}


@contextmanager
def programs(cluster: FakeCluster, folder: Path) -> Iterator[dict[str, str]]:
    """Put the programs into `folder`. Yields the environment variables that they need."""
    lock = threading.Lock()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            received = b""
            while not received.endswith(b"\x04"):
                part = self.connection.recv(1 << 16)
                if not part:  # the program was killed
                    return
                received += part
            line, _, text = received[:-1].decode().partition("\x1e")
            program, *arguments = line.split("\x1f")[:-1]
            try:
                with lock:  # the programs of a pipeline run at the same time
                    code, output = 0, cluster.call(program, arguments, text)
            except Refused as error:
                code, output = 1, f"error: {error}\n"
            self.wfile.write(f"{code}\n{output}".encode())

    for program in PROGRAMS:
        (folder / program).write_text(STUB)
        (folder / program).chmod(0o755)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield {"FAKE_CLUSTER": str(server.server_address[1])}
        server.shutdown()
        thread.join()


def run_script(cluster: FakeCluster, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `infra/cluster.sh up` against the cluster."""
    with programs(cluster, folder) as variables:
        merged = {**environment, **variables, "PATH": f"{folder}:{environment['PATH']}"}
        merged |= {"RETRY_PAUSE": "0", "RETRY_SECONDS": "60"}
        return subprocess.run(
            [ROOT / "infra/cluster.sh", "up"], env=merged, capture_output=True, text=True, timeout=120
        )
