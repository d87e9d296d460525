"""A Kubernetes API server in this process, with controllers that run the pods of TrainJobs and RayJobs as processes.

The shared volume is a local folder: its mount path in the manifests is replaced by the folder's path. The fake
cluster of tests/deploy is separate: it emulates server-side apply, schemas and KServe, and no jobs.
"""

import contextlib
import itertools
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import psutil
import yaml

from vlmflow.runtime.code_hash import ROOT

MOUNT = "/data"  # of the volume, in infra/trainer and infra/ray
NAMESPACE = "vlmflow"
NOT_FOUND = {"kind": "Status", "reason": "NotFound", "message": "not found"}


@dataclass
class Pod:
    """A pod: a process and its state in the API."""

    name: str
    labels: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None  # None: the pod is not scheduled

    @property
    def phase(self) -> str:
        code = self.process.poll() if self.process else None
        return "Pending" if self.process is None else {None: "Running", 0: "Succeeded"}.get(code, "Failed")

    def manifest(self) -> dict[str, Any]:
        return {
            "metadata": {"name": self.name, "namespace": NAMESPACE, "labels": self.labels},
            "spec": {"containers": [{"name": "node"}]},
            "status": {"phase": self.phase},
        }

    def kill(self) -> None:
        """Kill all processes of the pod, as if its node was lost; torchrun's workers have their own sessions."""
        if self.process and self.process.poll() is None:
            parent = psutil.Process(self.process.pid)
            for process in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()


@dataclass
class JobCluster:
    """The API server and its objects.

    full: no pod can be scheduled.
    restarts: restarts of a TrainJob's pods; None uses the number in the runtime.
    created_objects: every object that was created.
    """

    folder: Path
    full: bool = False
    restarts: int | None = None
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)  # by "plural/name"
    pods: dict[str, Pod] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    created_objects: list[dict[str, Any]] = field(default_factory=list)
    numbers: Any = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.shared = self.folder / "shared"
        self.shared.mkdir(parents=True)
        job_cluster = self

        class Handler(_Handler):
            cluster = job_cluster

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.kubeconfig = self.folder / "kubeconfig"
        context = {"cluster": "here", "user": "me", "namespace": NAMESPACE}
        content = {
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}],
            "contexts": [{"name": "here", "context": context}],
            "users": [{"name": "me", "user": {}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(content))

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a step's pod."""
        venv = Path(sys.executable).parent
        given = {"KUBECONFIG": str(self.kubeconfig), "VLMFLOW_NAMESPACE": NAMESPACE, "OMP_NUM_THREADS": "1"}
        given["VLMFLOW_SHARED"] = str(self.shared)
        path = {"PATH": f"{venv}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "VLMFLOW_TRACKING": "off"}
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "VLMFLOW_"))}
        return {**outer, **given, **path, **more}

    def close(self) -> None:
        """Stop the server and all pods."""
        self.objects.clear()
        self.server.shutdown()
        self.server.server_close()
        for pod in list(self.pods.values()):
            pod.kill()

    def create(self, plural: str, manifest: dict[str, Any]) -> None:
        """Store the object and start its controller."""
        manifest["status"] = {}
        self.created_objects.append(manifest)
        self.objects[f"{plural}/{manifest['metadata']['name']}"] = manifest
        work = {"trainjobs": self._trainjob, "rayjobs": self._rayjob}[plural]
        threading.Thread(target=work, args=(manifest,), daemon=True).start()

    def delete(self, plural: str, name: str) -> None:
        """Delete the object and its pods."""
        self.objects.pop(f"{plural}/{name}")
        for pod in [pod for pod in self.pods.values() if pod.name.startswith(f"{name}-")]:
            pod.kill()
            del self.pods[pod.name]

    def _start(self, name: str, labels: dict[str, str], command: list[str], env: dict[str, str]) -> Pod:
        name = f"{name}-{next(self.numbers)}"
        pod = self.pods[name] = Pod(name, labels, self.folder / f"{name}.log")
        if self.full:
            about = {"kind": "Pod", "name": name, "namespace": NAMESPACE}
            message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            event = {"involvedObject": about, "reason": "FailedScheduling", "message": message, "type": "Warning"}
            self.events.append({**event, "lastTimestamp": when, "metadata": {"name": f"{name}.1"}})
            return pod
        with pod.log.open("wb") as log:
            environment = {**self.environment(), **{k: v.replace(MOUNT, str(self.shared)) for k, v in env.items()}}
            pod.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        return pod

    def _trainjob(self, job: dict[str, Any]) -> None:
        """Emulate Kubeflow Trainer and JobSet: start the runtime's pods with the trainer; restart all if one fails."""
        name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
        runtime = yaml.safe_load((ROOT / "infra/trainer/runtime.yaml").read_text())
        assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
        jobset = runtime["spec"]["template"]["spec"]
        [container] = jobset["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        own = {one["name"]: one["value"] for one in container["env"] if not one["name"].startswith("MLFLOW")}
        restarts = jobset["failurePolicy"]["maxRestarts"] if self.restarts is None else self.restarts
        for _ in range(1 + restarts):
            pods = []
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            for rank in range(trainer["numNodes"]):
                labels = {"jobset.sigs.k8s.io/jobset-name": name, "batch.kubernetes.io/job-completion-index": str(rank)}
                env = {**own, **{one["name"]: one["value"] for one in trainer.get("env", [])}}
                env |= {"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
                env |= {"PET_NODE_RANK": str(rank), "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
                command = [*trainer["command"], *trainer["args"]]
                pods.append(self._start(f"{name}-node-0-{rank}", labels, command, env))
            while all(pod.phase in ("Pending", "Running") for pod in pods) or {pod.phase for pod in pods} == {
                "Running",
                "Succeeded",
            }:
                time.sleep(0.2)
            if f"trainjobs/{name}" not in self.objects:
                return
            if all(pod.phase == "Succeeded" for pod in pods):
                self._condition(job, "Complete", "JobsCompleted", "jobset completed successfully")
                return
            for pod in pods:
                pod.kill()
        self._condition(job, "Failed", "FailedJobs", "jobset failed due to reaching max number of restarts")

    def _condition(self, job: dict[str, Any], kind: str, reason: str, message: str) -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        job["status"] = {"conditions": [{**condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}

    def _rayjob(self, job: dict[str, Any]) -> None:
        """Emulate KubeRay with Ray on this machine: the entrypoint runs in the submitter's pod."""
        name, spec = job["metadata"]["name"], job["spec"]
        for part in (spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]):
            for _ in range(part.get("replicas", 1)):
                self._start(f"{name}-ray", part["template"]["metadata"]["labels"], ["sleep", "600"], {})
        labels = {**spec["submitterPodTemplate"]["metadata"]["labels"], "batch.kubernetes.io/job-name": name}
        command = shlex.split(spec["entrypoint"].replace(MOUNT, str(self.shared)))
        submitter = self._start(name, labels, command, {})
        job["status"] = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
        while submitter.phase in ("Pending", "Running"):
            time.sleep(0.2)
        if submitter.phase == "Succeeded":
            job["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
        else:
            job["status"] = {
                "jobDeploymentStatus": "Failed",
                "jobStatus": "FAILED",
                "reason": "AppFailed",
                "message": "",
            }


class _Handler(BaseHTTPRequestHandler):
    cluster: JobCluster
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        """Return objects, pods, logs or events."""
        url = urlparse(self.path)
        parts, query = url.path.strip("/").split("/"), {k: v[0] for k, v in parse_qs(url.query).items()}
        if parts[-1] == "log":
            return self._log(parts[-2], query.get("follow") == "True")
        if parts[-1] == "pods":
            wanted = dict(one.split("=") for one in query["labelSelector"].split(","))
            found = [pod for pod in list(self.cluster.pods.values()) if wanted.items() <= pod.labels.items()]
            return self._answer(200, {"kind": "PodList", "items": [pod.manifest() for pod in found]})
        if parts[-1] == "events":
            return self._answer(200, {"kind": "EventList", "items": self.cluster.events})
        found = self.cluster.objects.get("/".join(parts[-2:]))
        return self._answer(200, found) if found else self._answer(404, NOT_FOUND)

    def do_POST(self) -> None:
        """Create an object."""
        manifest = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.cluster.create(self.path.split("?")[0].split("/")[-1], manifest)
        self._answer(201, manifest)

    def do_DELETE(self) -> None:
        """Remove an object."""
        plural, name = self.path.split("?")[0].split("/")[-2:]
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if f"{plural}/{name}" not in self.cluster.objects:
            return self._answer(404, NOT_FOUND)
        self.cluster.delete(plural, name)
        return self._answer(200, {"kind": "Status", "status": "Success"})

    def _log(self, name: str, follow: bool) -> None:
        pod = self.cluster.pods.get(name)
        if pod is None:
            self._answer(404, NOT_FOUND)
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with pod.log.open("rb") as log:
            while True:
                over = pod.phase != "Running" or not follow
                if lines := log.read():
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(lines), lines))
                if over:
                    break
                time.sleep(0.1)
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
