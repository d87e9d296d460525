"""A cluster in this process, for a step that deploys to one: an API server, KServe's controller, nodes, a network.

The API server speaks HTTP to the real clients, through a kubeconfig: it stores objects with resourceVersion and
generation, does server-side apply (with dry run, and conflicts over fields), refuses what the custom resources'
schemas do not know, and says 401, 403, 404, 409 and 422 in the words of the real one. The controller makes pods, and a
pod really runs the predictor: the command and arguments of the ServingRuntime, on the folder that stands for its
storageUri. In Standard mode a Deployment is rolled, and its Ready stays that of the old pods meanwhile, as with the
real one; with Knative there are revisions, with their shares of the traffic. The network is a forward proxy that knows
the names of the cluster, and an ingress by the header Host.

What it does not do: admission but by schema and a few rules of KServe's, watches, managedFields in what it returns,
strategic merge, resources of nodes, autoscaling, storage, TLS. Pods with the same command share one process.
"""

import copy
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


class Refusal(Exception):
    """An answer that is an error, as a Status object; without a reason, as the plain page of an unknown path."""

    def __init__(self, status: int, message: str, reason: str = "", kind: str = ""):
        super().__init__(message)
        self.status, self.reason, self.kind = status, reason, kind


@cache
def _validator(kind: str) -> Any:
    """The schema of a custom resource, where it is here."""
    import jsonschema

    version = {"InferenceService": "v1beta1", "ServingRuntime": "v1alpha1"}.get(kind)
    file = SHARED / "schemas" / f"serving.kserve.io_{version}_{kind}.json"
    return jsonschema.Draft202012Validator(json.loads(file.read_text())) if file.exists() else None


class Node:
    """Where containers run: processes of this machine."""

    def __init__(self, volumes: Path):
        self.volumes, self.running = volumes, {}

    def run(self, container: Object, storage: str) -> "Process":
        """The process of a container whose model is at `storage`, started where none runs yet."""
        folder = str(self.volumes / storage.removeprefix("pvc://"))
        command = [argument.replace("/mnt/models", folder) for argument in container["command"] + container["args"]]
        key = "\0".join(command)
        if key not in self.running:
            self.running[key] = Process(command, container["readinessProbe"]["httpGet"]["path"])
        return self.running[key]

    def stop(self) -> None:
        """End every process."""
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
        self.up, self.probe = False, f"http://127.0.0.1:{self.port}{ready}"
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    @property
    def ended(self) -> str:
        """What it said last, if it has ended."""
        if self.process.poll() is None:
            return ""
        assert self.process.stderr is not None
        self.said = getattr(self, "said", None) or self.process.stderr.read().strip().splitlines()[-1]
        return self.said

    def ready(self) -> bool:
        """What the readiness probe says; it is asked until it says yes."""
        if not self.up:
            try:
                self.up = _network.get(self.probe, timeout=5).status_code == 200
            except httpx.HTTPError:
                return False
        return self.process.poll() is None

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None and self.process.stderr is not None
        self.process.stdin.close()
        self.process.stderr.close()


class Kubernetes:
    """The cluster's state, and the answers of its API server.

    forbidden: (verb, resource) pairs that the account may not; groups: what is installed; faults: what goes wrong
    with the pods of a storageUri: `never` ready, or `wrong`: an inner error for each prediction.
    """

    def __init__(self, node: Node, namespace: str = "models"):
        self.node, self.namespaces = node, {namespace}
        self.forbidden: set[tuple[str, str]] = set()
        self.groups, self.faults = dict(GROUPS), {}
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.fields: dict[tuple[str, str, str], dict[str, Object]] = {}  # what each manager applied
        self.revisions: dict[str, list[Object]] = {}  # of a service, Knative's, oldest first
        self.version, self.requests, self.outage = 0, 0, 0  # so many calls are answered with 503
        self.lock = threading.RLock()

    # -- the API server

    def answer(self, method: str, path: str, query: dict[str, str], body: Any, token: str) -> Object:
        """The object that answers a call.

        Raises:
            Refusal: it is not allowed, or there is no such thing.
        """
        if token != f"Bearer {TOKEN}":
            raise Refusal(401, "Unauthorized", "Unauthorized")
        found = _PATH.fullmatch(path)
        if found is None or found["plural"] not in self.groups.get(found["group"], ()):
            raise Refusal(404, "404 page not found")
        group, plural, namespace, name = (found[key] for key in ("group", "plural", "namespace", "name"))
        verb = {"GET": "get" if name else "list", "PATCH": "patch", "DELETE": "delete"}[method]
        where = group.rpartition("/")[0]
        whole = f"{plural}.{where}" if where else plural
        if self.outage and plural == "pods":
            self.outage -= 1
            raise Refusal(503, "apiserver is shutting down", "ServiceUnavailable")
        if (verb, plural) in self.forbidden:
            text = f'cannot {verb} resource "{plural}" in API group "{where}" in the namespace "{namespace}"'
            raise Refusal(403, f'{whole} is forbidden: User "step" {text}', "Forbidden", plural)
        key = (plural, namespace, name)
        if verb == "patch":
            if namespace not in self.namespaces:
                raise Refusal(404, f'namespaces "{namespace}" not found', "NotFound", "namespaces")
            return self.apply(key, body, query)
        self.reconcile()
        if verb == "list":
            labels = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
            items = [o for (p, n, _), o in self.objects.items() if (p, n) == (plural, namespace)]
            return {"items": [o for o in items if labels.items() <= o["metadata"].get("labels", {}).items()]}
        if key not in self.objects:
            raise Refusal(404, f'{whole} "{name}" not found', "NotFound", plural)
        if verb == "delete":
            self.fields.pop(key, None)
            self.revisions.pop(name, None)
            return self.objects.pop(key)
        return self.objects[key]

    def apply(self, key: tuple[str, str, str], body: Object, query: dict[str, str]) -> Object:
        """Server-side apply of `body` by a manager of fields."""
        live, manager = self.objects.get(key, {}), query["fieldManager"]
        given = body["metadata"].get("resourceVersion")
        if given and given != live.get("metadata", {}).get("resourceVersion"):
            raise Refusal(
                409, f"Operation cannot be fulfilled on {key[0]} {key[2]!r}: it has been modified", "Conflict"
            )
        owned = self.fields.get(key, {})
        others = {path for who, what in owned.items() if who != manager for path, _ in _leaves(what)}
        clash = [path for path, value in _leaves(body) if path in others and _at(live, path) != value]
        if clash and query.get("force") != "true":
            raise Refusal(409, f"Apply failed with 1 conflict: conflict with another manager: {clash[0]}", "Conflict")
        made = copy.deepcopy(live)
        kept = {path for path, _ in _leaves(body)}
        for path, _ in _leaves(owned.get(manager, {})):
            if path not in kept and path not in others:
                _remove(made, path)
        _merge(made, body)
        self._admit(made)
        metadata, before = made["metadata"], live.get("metadata", {})
        if made.get("data") != live.get("data") and live:
            raise Refusal(422, f'{made["kind"]} "{key[2]}" is invalid: data: field is immutable', "Invalid")
        changed = made.get("spec") != live.get("spec")
        metadata["generation"] = before.get("generation", 0) + changed
        if query.get("dryRun") == "All":
            return made
        if made != live:
            self.version += 1
            metadata["resourceVersion"] = str(self.version)
        self.objects[key], self.fields[key] = made, {**owned, manager: copy.deepcopy(body)}
        self.reconcile()
        return self.objects[key]

    def _admit(self, made: Object) -> None:
        """The schema, and KServe's webhooks: a default, and rules about canaries."""
        kind, name = made["kind"], made["metadata"]["name"]
        validator = _validator(kind)
        bare = {key: value for key, value in made.items() if key != "status"}
        for error in validator.iter_errors(bare) if validator else ():
            raise Refusal(422, f'{kind} "{name}" is invalid: {error.message}', "Invalid", kind)
        if kind != "InferenceService":
            return
        spec = made["spec"]
        standard = made["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
        if spec.get("canary") and not standard:
            raise Refusal(400, "admission webhook denied the request: canary: in Standard mode only", "BadRequest")
        if any("name" not in entry["predictor"] for entry in spec.get("canary", [])):
            raise Refusal(400, "admission webhook denied the request: canary: predictor.name is required", "BadRequest")
        spec["predictor"]["model"].setdefault("protocolVersion", "v1")

    # -- the controller

    def reconcile(self) -> None:
        """Bring pods and statuses nearer to the specs."""
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
        for (plural, _, pod), held in list(self.objects.items()):  # of a canary that is no longer there
            labels = held["metadata"].get("labels", {}) if plural == "pods" else {}
            if labels.get("serving.kserve.io/inferenceservice") == name and labels["app"] not in parts:
                del self.objects["pods", namespace, pod]
        available = {}
        for part, predictor in parts.items():
            new = self._pod(namespace, name, part, service, predictor)
            pods = [
                o for (p, _, _), o in self.objects.items() if p == "pods" and o["metadata"]["labels"]["app"] == part
            ]
            if _ready(new):  # the old ones go when the new one can serve
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
            made = {"name": f"{name}-predictor-{len(revisions) + 1:05}", "template": template, "ready": False}
            revisions.append(made)
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
        """The pod of a template: KServe hands labels and annotations of the service on to it."""
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
        """The pod that a request to `host` comes to; one of a hundred requests for each percent."""
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
            of = {revision["name"]: pods.get(revision["pod"]) for revision in self.revisions.get(name, [])}
            for each in traffic:
                if each.get("url", "").startswith(f"http://{host}"):
                    return of[each["revisionName"]]
            if name == entry and traffic:
                drawn, passed = self.requests % 100, 0
                for each in traffic:
                    passed += each["percent"]
                    if drawn < passed:
                        return of[each["revisionName"]]
        return None


def _ready(pod: Object) -> bool:
    return pod["status"]["conditions"][0]["status"] == "True"


def _condition(kind: str, true: bool, message: str = "Deployment does not have minimum availability.") -> Object:
    return {"type": kind, "status": str(true), **({} if true else {"reason": "NotReady", "message": message})}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def _leaves(value: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Fields as server-side apply owns them: lists are whole."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _leaves(item, (*path, key))
        else:
            yield (*path, key), item


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _remove(value: Object, path: tuple[str, ...]) -> None:
    parent = _at(value, path[:-1])
    if isinstance(parent, dict):
        parent.pop(path[-1], None)
        if not parent and len(path) > 1:
            _remove(value, path[:-1])


def _merge(value: Object, other: Object) -> None:
    for key, item in other.items():
        if isinstance(item, dict) and isinstance(value.get(key), dict):
            _merge(value[key], item)
        else:
            value[key] = copy.deepcopy(item)


class _Handler(BaseHTTPRequestHandler):
    """Calls of the API server, and requests that go through the cluster's network."""

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
        place = urlsplit(self.path)
        if place.path.startswith("/api") and not place.netloc:
            self.api(place.path, {key: values[0] for key, values in parse_qs(place.query).items()}, body)
        else:
            self.forward(place.netloc or self.headers["Host"], place.path, body)

    def api(self, path: str, query: dict[str, str], body: bytes) -> None:
        try:
            with self.cluster.lock:
                token = self.headers.get("Authorization", "")
                said = self.cluster.answer(self.command, path, query, json.loads(body) if body else None, token)
                self.reply(200, json.dumps(said).encode())
        except Refusal as refusal:
            if not refusal.reason:
                self.reply(refusal.status, str(refusal).encode(), "text/plain")
                return
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(refusal)}
            status |= {"reason": refusal.reason, "details": {"kind": refusal.kind}, "code": refusal.status}
            self.reply(refusal.status, json.dumps(status).encode())

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
            said = _network.request(self.command, url, content=body, headers=kind, timeout=120)
            self.reply(said.status_code, said.content, said.headers["Content-Type"])

    def reply(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(cluster: Kubernetes) -> Iterator[str]:
    """Serve it on a free port of this machine; yields its address."""
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
