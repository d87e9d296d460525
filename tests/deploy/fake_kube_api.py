"""A fake cluster in this process to deploy to: an API server, KServe's controller, a node and a network.

- The API server answers the real clients over HTTP, through a kubeconfig. It stores objects with resourceVersion and
  generation, implements server-side apply (tests/deploy/server_side_apply.py), validates custom resources by their
  schemas, and returns 400, 401, 403, 404, 409 and 422 with the messages of a real server.
- The controller creates pods, and each pod runs the real predictor: the command and arguments of the ServingRuntime,
  on a local folder in place of its storageUri. In Standard mode a Deployment is replaced and its Ready condition stays
  that of the old pods in the meantime, as in a real cluster. With Knative there are revisions with traffic shares.
- The network is a forward proxy that resolves the cluster's host names, and an ingress that routes by the header Host.

Not implemented: admission beyond the schemas and a few of KServe's rules, watches, strategic merge, node resources,
autoscaling, storage, TLS. Pods with the same command share one process.
"""

import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import yaml

from tests.conftest import SHARED
from tests.deploy import server_side_apply

Object = dict[str, Any]
TOKEN = "let-me-in"
GROUPS = {
    "serving.kserve.io/v1beta1": ("inferenceservices",),
    "serving.kserve.io/v1alpha1": ("servingruntimes",),
    "gateway.networking.k8s.io/v1": ("httproutes",),
    "apps/v1": ("controllerrevisions",),
    "v1": ("pods", "events"),
}
_PATH = re.compile(r"/apis?/(?P<group>[\w./-]+?)/namespaces/(?P<namespace>[\w-]+)/(?P<plural>\w+)(/(?P<name>[\w.-]+))?")


_network = httpx.Client(trust_env=False)


class ApiError(Exception):
    """An error response: a Status object, or without a reason the plain 404 page of an unknown path."""

    def __init__(self, status: int, message: str, reason: str = "", kind: str = ""):
        super().__init__(message)
        self.status, self.reason, self.kind = status, reason, kind


@cache
def _validator(kind: str) -> Any:
    """Return a validator of a custom resource, or None if its schema is not available."""
    import jsonschema

    version = {"InferenceService": "v1beta1", "ServingRuntime": "v1alpha1"}.get(kind)
    file = SHARED / "schemas" / f"serving.kserve.io_{version}_{kind}.json"
    return jsonschema.Draft202012Validator(json.loads(file.read_text())) if file.exists() else None


class Node:
    """Runs containers as processes on this machine."""

    def __init__(self, volumes: Path):
        self.volumes, self.running = volumes, {}

    def run(self, container: Object, storage: str) -> "Process":
        """Return the process of a container with the model at `storage`, and start it if none is running."""
        folder = str(self.volumes / storage.removeprefix("pvc://"))
        command = [argument.replace("/mnt/models", folder) for argument in container["command"] + container["args"]]
        key = "\0".join(command)
        if key not in self.running:
            self.running[key] = Process(command, container["readinessProbe"]["httpGet"]["path"])
        return self.running[key]

    def stop(self) -> None:
        """Kill every process."""
        for process in self.running.values():
            process.stop()


class Process:
    """A container's process, on a free port."""

    def __init__(self, command: list[str], ready: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, *command[1:], "--until_stdin_closes"]
        command = [f"--http_port={self.port}" if "http_port" in part else part for part in command]
        self.last_line: str | None = None
        self.up, self.probe = False, f"http://127.0.0.1:{self.port}{ready}"
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    @property
    def ended(self) -> str:
        """The last line of its stderr if it has exited, else ""."""
        if self.process.poll() is None:
            return ""
        assert self.process.stderr is not None
        line = self.last_line or self.process.stderr.read().strip().splitlines()[-1]
        self.last_line = line
        return line

    def ready(self) -> bool:
        """Whether the readiness probe has succeeded; it is called until it does."""
        if not self.up:
            try:
                self.up = _network.get(self.probe, timeout=5).status_code == 200
            except httpx.HTTPError:
                return False
        return self.process.poll() is None

    def stop(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None and self.process.stderr is not None
        self.process.stdin.close()
        self.process.stderr.close()


class Kubernetes:
    """The cluster's state and the responses of its API server.

    forbidden: (verb, resource) pairs that the account lacks.
    groups: API group → resources that are installed.
    faults: storageUri → fault of its pods: `never` (never ready) or `wrong` (status 500 for each prediction).
    outage: number of calls that are answered with 503.
    """

    def __init__(self, node: Node, namespace: str = "models"):
        self.node, self.namespaces = node, {namespace}
        self.forbidden: set[tuple[str, str]] = set()
        self.groups, self.faults = dict(GROUPS), {}
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.owners: dict[tuple[str, str, str], server_side_apply.Owners] = {}
        self.revisions: dict[str, list[Object]] = {}  # service → Knative revisions, oldest first
        self.version, self.requests, self.outage = 0, 0, 0
        self.lock = threading.RLock()

    # -- the API server

    def answer(self, method: str, path: str, query: dict[str, str], body: Any, token: str) -> Object:
        """Return the object that answers a call.

        Raises:
            ApiError: the call is not allowed, or the object does not exist.
        """
        if token != f"Bearer {TOKEN}":
            raise ApiError(401, "Unauthorized", "Unauthorized")
        match = _PATH.fullmatch(path)
        if match is None or match["plural"] not in self.groups.get(match["group"], ()):
            raise ApiError(404, "404 page not found")
        group, plural, namespace, name = (match[key] for key in ("group", "plural", "namespace", "name"))
        verb = {"GET": "get" if name else "list", "PATCH": "patch", "DELETE": "delete"}[method]
        where = group.rpartition("/")[0]
        whole = f"{plural}.{where}" if where else plural
        if self.outage and plural == "pods":
            self.outage -= 1
            raise ApiError(503, "apiserver is shutting down", "ServiceUnavailable")
        if (verb, plural) in self.forbidden:
            text = f'cannot {verb} resource "{plural}" in API group "{where}" in the namespace "{namespace}"'
            raise ApiError(403, f'{whole} is forbidden: User "step" {text}', "Forbidden", plural)
        key = (plural, namespace, name)
        if verb == "patch":
            if namespace not in self.namespaces:
                raise ApiError(404, f'namespaces "{namespace}" not found', "NotFound", "namespaces")
            return self.apply(key, body, query)
        self.reconcile()
        if verb == "list":
            labels = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
            items = [o for (p, n, _), o in self.objects.items() if (p, n) == (plural, namespace)]
            return {"items": [o for o in items if labels.items() <= o["metadata"].get("labels", {}).items()]}
        if key not in self.objects:
            raise ApiError(404, f'{whole} "{name}" not found', "NotFound", plural)
        if verb == "delete":
            self.owners.pop(key, None)
            self.revisions.pop(name, None)
            return self.objects.pop(key)
        return self.objects[key]

    def apply(self, key: tuple[str, str, str], body: Object, query: dict[str, str]) -> Object:
        """Server-side apply of `body` by a field manager."""
        live, manager = self.objects.get(key, {}), query.get("fieldManager", "")
        if not manager:
            text = 'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
            raise ApiError(422, text, "Invalid")
        if body["metadata"].get("managedFields"):
            raise ApiError(400, "metadata.managedFields must be nil", "BadRequest")
        given = body["metadata"].get("resourceVersion")
        if given and given != live.get("metadata", {}).get("resourceVersion"):
            raise ApiError(
                409, f"Operation cannot be fulfilled on {key[0]} {key[2]!r}: it has been modified", "Conflict"
            )
        force = query.get("force") == "true"
        try:
            merged, owners = server_side_apply.apply(live, body, self.owners.get(key, {}), manager, force)
        except server_side_apply.Conflict as conflict:
            raise ApiError(409, str(conflict), "Conflict") from None
        self._admit(merged)
        metadata, before = merged["metadata"], live.get("metadata", {})
        if merged.get("data") != live.get("data") and live:
            raise ApiError(422, f'{merged["kind"]} "{key[2]}" is invalid: data: field is immutable', "Invalid")
        metadata["managedFields"] = server_side_apply.managed_fields(owners, merged["apiVersion"])
        changed = merged.get("spec") != live.get("spec")
        metadata["generation"] = before.get("generation", 0) + changed
        if query.get("dryRun") == "All":
            return merged
        if merged != live:
            self.version += 1
            metadata["resourceVersion"] = str(self.version)
        self.objects[key], self.owners[key] = merged, owners
        self.reconcile()
        return self.objects[key]

    def _admit(self, merged: Object) -> None:
        """Validate the schema, and act as KServe's webhooks: set a default and check canaries."""
        kind, name = merged["kind"], merged["metadata"]["name"]
        validator = _validator(kind)
        bare = {key: value for key, value in merged.items() if key != "status"}
        for error in validator.iter_errors(bare) if validator else ():
            raise ApiError(422, f'{kind} "{name}" is invalid: {error.message}', "Invalid", kind)
        if kind != "InferenceService":
            return
        spec = merged["spec"]
        standard = merged["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
        if spec.get("canary") and not standard:
            raise ApiError(400, "admission webhook denied the request: canary: in Standard mode only", "BadRequest")
        if any("name" not in entry["predictor"] for entry in spec.get("canary", [])):
            raise ApiError(
                400, "admission webhook denied the request: canary: predictor.name is required", "BadRequest"
            )
        spec["predictor"]["model"].setdefault("protocolVersion", "v1")

    # -- the controller

    def reconcile(self) -> None:
        """Move pods and statuses one step towards the specs."""
        for (plural, namespace, name), service in list(self.objects.items()):
            if plural == "inferenceservices":
                standard = service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
                service["status"] = (self._deployments if standard else self._knative)(namespace, name, service)
        names = {name for plural, _, name in self.objects if plural == "inferenceservices"}
        for key, pod in list(self.objects.items()):
            if key[0] == "pods" and pod["metadata"]["labels"]["serving.kserve.io/inferenceservice"] not in names:
                del self.objects[key]

    def _deployments(self, namespace: str, name: str, service: Object) -> Object:
        parts = {f"{name}-predictor": service["spec"]["predictor"]}
        for entry in service["spec"].get("canary", []):
            parts[f"{name}-{entry['predictor']['name']}-predictor"] = entry["predictor"]
        for (plural, _, pod), item in list(self.objects.items()):  # remove the pods of a canary that was removed
            labels = item["metadata"].get("labels", {}) if plural == "pods" else {}
            if labels.get("serving.kserve.io/inferenceservice") == name and labels["app"] not in parts:
                del self.objects["pods", namespace, pod]
        available = {}
        for part, predictor in parts.items():
            new = self._pod(namespace, name, part, service, predictor)
            pods = [
                o for (p, _, _), o in self.objects.items() if p == "pods" and o["metadata"]["labels"]["app"] == part
            ]
            if _ready(new):  # the old pods are removed when the new one is ready
                for old in pods:
                    if old is not new:
                        del self.objects["pods", namespace, old["metadata"]["name"]]
            available[part] = any(map(_ready, pods))
        stable, *canaries = parts
        conditions = [_condition("PredictorReady", available[stable]), _condition("Ready", available[stable])]
        if canaries:
            conditions.append(_condition("CanaryPredictorReady", all(available[part] for part in canaries)))
        url = f"http://{stable}.{namespace}.svc.cluster.local"
        return {"conditions": conditions, "address": {"url": url}, "components": {"predictor": {}}}

    def _knative(self, namespace: str, name: str, service: Object) -> Object:
        predictor = {k: v for k, v in service["spec"]["predictor"].items() if k != "canaryTrafficPercent"}
        template = _hash([predictor, service["metadata"]["labels"], service["metadata"]["annotations"]])
        revisions = self.revisions.setdefault(name, [])
        if not revisions or revisions[-1]["template"] != template:
            revision_name = f"{name}-predictor-{len(revisions) + 1:05}"
            revisions.append({"name": revision_name, "template": template, "ready": False})
        latest = revisions[-1]
        pod = self._pod(namespace, name, latest["name"], service, predictor)
        latest["ready"], latest["pod"] = _ready(pod), pod["metadata"]["name"]
        ready = [revision for revision in revisions if revision["ready"]]
        share = service["spec"]["predictor"].get("canaryTrafficPercent", 100)
        status: Object = {"latestCreatedRevision": latest["name"]}
        if latest["ready"] and share == 100:
            for revision in revisions:
                revision["rolled"] = revision is latest
        rolled = next((revision for revision in reversed(ready) if revision.get("rolled")), None)
        if latest["ready"]:
            status |= {"latestReadyRevision": latest["name"], "traffic": []}
            share = share if rolled and rolled is not latest else 100
            tags = [(latest, share, "latest", True)]
            tags += [(rolled, 100 - share, "prev", False)] if rolled and rolled is not latest else []
            for revision, percent, tag, newest in tags:
                url = f"http://{tag}-{name}-predictor.{namespace}.example.com"
                entry = {"revisionName": revision["name"], "percent": percent, "tag": tag, "url": url}
                status["traffic"].append({**entry, "latestRevision": newest})
        elif rolled:
            status |= {"latestReadyRevision": rolled["name"]}
            status["traffic"] = [{"revisionName": rolled["name"], "percent": 100, "latestRevision": False}]
        conditions = [_condition("Ready", latest["ready"], f'Revision "{latest["name"]}" is not yet ready.')]
        address = {"url": f"http://{name}.{namespace}.svc.cluster.local"}
        return {"conditions": conditions, "address": address, "components": {"predictor": status}}

    def _pod(self, namespace: str, name: str, app: str, service: Object, predictor: Object) -> Object:
        """Return the pod of a template. KServe copies the labels and annotations of the service to it."""
        metadata = service["metadata"]
        labels = {**metadata["labels"], **predictor.get("labels", {}), "serving.kserve.io/inferenceservice": name}
        template = _hash([predictor, labels, metadata["annotations"]])
        key = ("pods", namespace, f"{app}-{template}")
        pod = self.objects.setdefault(key, {"metadata": {"name": key[2], "labels": {**labels, "app": app}}})
        storage = predictor["model"]["storageUri"]
        runtime = self.objects.get(("servingruntimes", namespace, predictor["model"]["runtime"]))
        reason = "" if runtime else f"ServingRuntime {predictor['model']['runtime']} not found"
        process = None
        if runtime and self.faults.get(storage) == "never":
            reason = 'Back-off pulling image "localhost/vlmflow-serve:gone"'
        elif runtime:
            text = json.dumps(runtime["spec"]["containers"][0]).replace("{{.Name}}", name)
            process = self.node.run(json.loads(text), storage)
            reason = f"Back-off restarting failed container: {process.ended}" if process.ended else ""
        if reason:
            event = {"involvedObject": {"name": key[2]}, "type": "Warning", "reason": "BackOff", "message": reason}
            self.objects["events", namespace, key[2]] = {"metadata": {"name": key[2]}, **event}
        ready = process is not None and not reason and process.ready()
        pod["status"] = {"conditions": [_condition("Ready", ready)]}
        pod["process"], pod["storage"] = (process.port if process else None), storage
        return pod

    # -- the network

    def route(self, host: str) -> Object | None:
        """Return the pod that receives a request to `host`; of 100 requests, each percent of traffic gets one."""
        self.requests += 1
        self.reconcile()
        entry, namespace = host.split(".")[:2]
        pods = {n: pod for (p, space, n), pod in self.objects.items() if (p, space) == ("pods", namespace)}
        for pod in pods.values():
            if pod["metadata"]["labels"]["app"] == entry and _ready(pod):
                return pod
        for (plural, _, name), service in self.objects.items():
            if plural != "inferenceservices":
                continue
            traffic = service["status"]["components"]["predictor"].get("traffic", [])
            revision_pods = {revision["name"]: pods.get(revision["pod"]) for revision in self.revisions.get(name, [])}
            for target in traffic:
                if target.get("url", "").startswith(f"http://{host}"):
                    return revision_pods[target["revisionName"]]
            if name == entry and traffic:
                position, cumulative = self.requests % 100, 0
                for target in traffic:
                    cumulative += target["percent"]
                    if position < cumulative:
                        return revision_pods[target["revisionName"]]
        return None


def _ready(pod: Object) -> bool:
    return pod["status"]["conditions"][0]["status"] == "True"


def _condition(kind: str, true: bool, message: str = "Deployment does not have minimum availability.") -> Object:
    return {"type": kind, "status": str(true), **({} if true else {"reason": "NotReady", "message": message})}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


class _Handler(BaseHTTPRequestHandler):
    """Handles calls to the API server and requests through the cluster's network."""

    cluster: Kubernetes

    def do_GET(self) -> None:
        self.serve()

    def do_POST(self) -> None:
        self.serve()

    def do_PATCH(self) -> None:
        self.serve()

    def do_DELETE(self) -> None:
        self.serve()

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        if url.path.startswith("/api") and not url.netloc:
            self.api(url.path, {key: values[0] for key, values in parse_qs(url.query).items()}, body)
        else:
            self.forward(url.netloc or self.headers["Host"], url.path, body)

    def api(self, path: str, query: dict[str, str], body: bytes) -> None:
        try:
            with self.cluster.lock:
                token = self.headers.get("Authorization", "")
                answer = self.cluster.answer(self.command, path, query, json.loads(body) if body else None, token)
                self.reply(200, json.dumps(answer).encode())
        except ApiError as error:
            if not error.reason:
                self.reply(error.status, str(error).encode(), "text/plain")
                return
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(error)}
            status |= {"reason": error.reason, "details": {"kind": error.kind}, "code": error.status}
            self.reply(error.status, json.dumps(status).encode())

    def forward(self, host: str, path: str, body: bytes) -> None:
        with self.cluster.lock:
            pod = self.cluster.route(host.split(":")[0])
        if pod is None:
            self.reply(503, b"no healthy upstream", "text/plain")
        elif self.cluster.faults.get(pod["storage"]) == "wrong" and path.endswith(":predict"):
            self.reply(500, b"CUDA error: no kernel image is available", "text/plain")
        else:
            url = f"http://127.0.0.1:{pod['process']}{path}"
            kind = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            response = _network.request(self.command, url, content=body, headers=kind, timeout=120)
            self.reply(response.status_code, response.content, response.headers["Content-Type"])

    def reply(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Do not log requests."""


@contextmanager
def serving(cluster: Kubernetes) -> Iterator[str]:
    """Serve the API on a free port of this machine. Yields its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def kubeconfig(file: Path, server: str, token: str = TOKEN) -> Path:
    """Write a kubeconfig for the server."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "step", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "step"}}],
    }
    file.write_text(yaml.safe_dump(content))
    return file
