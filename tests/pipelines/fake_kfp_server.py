"""A stand-in for the API server of Kubeflow Pipelines, which needs a cluster: its v2beta1 API over HTTP, in memory.

Paths, fields and JSON names are those of the published definition: every body is read into and written from the
model classes that `kfp_server_api` was generated as from it, and an unknown field is refused as the real server
does. What it cannot show is the cluster: a test says in `script` how the tasks of a run go, a list of states for
each look at it.
"""

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api
import yaml

CODEC = api.ApiClient()


def read(kind: str, body: bytes) -> Any:
    """JSON into a model of the definition; an unknown field is refused as the real server refuses it."""
    known = set(getattr(api, kind).attribute_map.values())
    if unknown := set(json.loads(body)) - known:
        raise Refusal(400, f"unknown field {sorted(unknown)[0]!r}")
    return CODEC.deserialize(SimpleNamespace(data=body), kind)


class Refusal(Exception):
    """An answer that is an error, as gRPC's gateway words it."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class KubeflowPipelines:
    """The server's state; a method for each call of the API that the client makes."""

    def __init__(self, token: str = "", status: int = 200):
        self.token, self.status = token, status
        self.pipelines: dict[str, Any] = {}  # by id: V2beta1Pipeline
        self.versions: dict[str, Any] = {}  # V2beta1PipelineVersion
        self.experiments: dict[str, Any] = {}  # V2beta1Experiment
        self.runs: dict[str, Any] = {}  # V2beta1Run
        self.recurring: dict[str, Any] = {}  # V2beta1RecurringRun
        self.script: list[tuple[str, list[api.V2beta1PipelineTaskDetail]]] = [("SUCCEEDED", [])]
        self.outage = 0  # so many looks at a run are answered with 503
        self.routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", r"healthz", lambda **_: api.V2beta1GetHealthzResponse(multi_user=False)),
            ("GET", r"pipelines", self.list_pipelines),
            ("POST", r"pipelines", self.create_pipeline),
            ("POST", r"pipelines/upload_version", self.upload_version),
            ("GET", r"pipelines/(?P<pipeline_id>[\w-]+)/versions", self.list_versions),
            ("GET", r"experiments", self.list_experiments),
            ("POST", r"experiments", self.create_experiment),
            ("POST", r"runs", self.create_run),
            ("GET", r"runs/(?P<run_id>[\w-]+)", self.get_run),
            ("GET", r"recurringruns", self.list_recurring),
            ("POST", r"recurringruns", self.create_recurring),
            ("DELETE", r"recurringruns/(?P<recurring_run_id>[\w-]+)", self.delete_recurring),
        ]

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        """The model that answers a call.

        Raises:
            Refusal: there is no such call, or it is not allowed.
        """
        for verb, pattern, call in self.routes:
            if verb == method and (found := re.fullmatch(f"/apis/v2beta1/{pattern}", path)):
                return call(**found.groupdict(), query=query, body=body)
        raise Refusal(404, f"no such call: {method} {path}")

    def list_pipelines(self, query: dict[str, str], **_: Any) -> Any:
        found = [p for p in self.pipelines.values() if (p.namespace or "") == query.get("namespace", "")]
        return api.V2beta1ListPipelinesResponse(pipelines=named(found, query))

    def create_pipeline(self, body: bytes, **_: Any) -> Any:
        made = read("V2beta1Pipeline", body)
        if any(p.display_name == made.display_name and p.namespace == made.namespace for p in self.pipelines.values()):
            raise Refusal(409, f"pipeline {made.display_name} already exists")
        made.pipeline_id = str(uuid.uuid4())
        self.pipelines[made.pipeline_id] = made
        return made

    def list_versions(self, pipeline_id: str, query: dict[str, str], **_: Any) -> Any:
        found = [version for version in self.versions.values() if version.pipeline_id == pipeline_id]
        return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=named(found, query))

    def upload_version(self, query: dict[str, str], body: bytes, **_: Any) -> Any:
        if query["pipelineid"] not in self.pipelines:
            raise Refusal(404, f"pipeline {query['pipelineid']} not found")
        ir, platform = yaml.safe_load_all(body)
        spec = {"pipeline_spec": ir, "platform_spec": platform}
        made: Any = api.V2beta1PipelineVersion(
            pipeline_id=query["pipelineid"],
            pipeline_version_id=str(uuid.uuid4()),
            display_name=query["name"],
            pipeline_spec=spec,
        )
        self.versions[made.pipeline_version_id] = made
        return made

    def list_experiments(self, query: dict[str, str], **_: Any) -> Any:
        return api.V2beta1ListExperimentsResponse(experiments=named(list(self.experiments.values()), query))

    def create_experiment(self, body: bytes, **_: Any) -> Any:
        made = read("V2beta1Experiment", body)
        made.experiment_id = str(uuid.uuid4())
        self.experiments[made.experiment_id] = made
        return made

    def create_run(self, body: bytes, **_: Any) -> Any:
        made = read("V2beta1Run", body)
        self._checked(made)
        made.run_id, made.state = str(uuid.uuid4()), "PENDING"
        self.runs[made.run_id] = made
        return made

    def _checked(self, made: Any) -> None:
        """A run's version is there, and its parameters are the pipeline's."""
        version = self.versions.get(made.pipeline_version_reference.pipeline_version_id)
        if version is None or made.experiment_id not in self.experiments:
            raise Refusal(404, "pipeline version or experiment not found")
        root = version.pipeline_spec["pipeline_spec"]["root"]
        known = root["inputDefinitions"]["parameters"]
        if unknown := set(made.runtime_config.parameters or {}) - set(known):
            raise Refusal(400, f"unknown parameters: {sorted(unknown)}")

    def get_run(self, run_id: str, **_: Any) -> Any:
        if self.outage:
            self.outage -= 1
            raise Refusal(503, "upstream connect error")
        if run_id not in self.runs:
            raise Refusal(404, f"run {run_id} not found")
        run = self.runs[run_id]
        state, details = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        run.state, run.run_details = state, api.V2beta1RunDetails(task_details=details)
        return run

    def list_recurring(self, query: dict[str, str], **_: Any) -> Any:
        found = [job for job in self.recurring.values() if job.experiment_id == query.get("experiment_id")]
        return api.V2beta1ListRecurringRunsResponse(recurring_runs=named(found, query))

    def create_recurring(self, body: bytes, **_: Any) -> Any:
        made = read("V2beta1RecurringRun", body)
        self._checked(made)
        made.recurring_run_id, made.status = str(uuid.uuid4()), "ENABLED"
        self.recurring[made.recurring_run_id] = made
        return made

    def delete_recurring(self, recurring_run_id: str, **_: Any) -> Any:
        del self.recurring[recurring_run_id]
        return {}


def named(found: list[Any], query: dict[str, str]) -> list[Any]:
    """Those that the filter of the query lets through."""
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        assert predicate["operation"] in ("EQUALS", 1) and predicate["key"] == "display_name", predicate
        found = [each for each in found if each.display_name == predicate["stringValue"]]
    return found


def task(name: str, state: str, error: str = "", children: tuple[str, ...] = ()) -> api.V2beta1PipelineTaskDetail:
    """A node of a run, as the server tells of it; its id is its name."""
    return api.V2beta1PipelineTaskDetail(
        task_id=name,
        display_name=name,
        state=state,
        error=api.GoogleRpcStatus(code=2, message=error) if error else None,
        child_tasks=[api.PipelineTaskDetailChildTask(task_id=child) for child in children],
    )


@contextmanager
def serving(kubeflow: KubeflowPipelines) -> Iterator[str]:
    """Serve it on a free port of this machine; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.serve()

        def do_POST(self) -> None:
            self.serve()

        def do_DELETE(self) -> None:
            self.serve()

        def serve(self) -> None:
            place = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(place.query).items()}
            body: Any = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = self.headers.get("Content-Type", "")
            if kind.startswith("multipart/"):
                parts = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body).get_payload()
                body = parts[0].get_payload(decode=True)  # type: ignore[union-attr, index]
            try:
                if kubeflow.status != 200:
                    raise Refusal(kubeflow.status, "refused by the test")
                if kubeflow.token and self.headers.get("Authorization") != f"Bearer {kubeflow.token}":
                    raise Refusal(401, "Request header error: there is no user identity header.")
                status, said = (
                    200,
                    CODEC.sanitize_for_serialization(kubeflow.answer(self.command, place.path, query, body)),
                )
            except Refusal as refusal:
                status, said = refusal.status, {"code": 2, "message": str(refusal), "details": []}
            text = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
