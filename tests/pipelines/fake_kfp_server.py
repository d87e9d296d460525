"""A fake API server of Kubeflow Pipelines: its v2beta1 API over HTTP, in memory, without a cluster.

Paths, fields and JSON names are those of the published API definition: every body is parsed into, and written from,
the model classes of `kfp_server_api`, which are generated from that definition. Unknown fields are rejected, as by the
real server. No step runs: a test sets in `script` the states of a run and its tasks, one entry for each poll.
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
    """Parse JSON into a model class of the API; an unknown field is rejected, as by the real server."""
    known = set(getattr(api, kind).attribute_map.values())
    if unknown := set(json.loads(body)) - known:
        raise ApiError(400, f"unknown field {sorted(unknown)[0]!r}")
    return CODEC.deserialize(SimpleNamespace(data=body), kind)


class ApiError(Exception):
    """An error response, in the format of gRPC's gateway."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class KubeflowPipelines:
    """The server's state, with a method for each API call that the client makes."""

    def __init__(self, token: str = "", status: int = 200):
        self.token, self.status = token, status
        self.pipelines: dict[str, Any] = {}  # id → V2beta1Pipeline
        self.versions: dict[str, Any] = {}  # V2beta1PipelineVersion
        self.experiments: dict[str, Any] = {}  # V2beta1Experiment
        self.runs: dict[str, Any] = {}  # V2beta1Run
        self.recurring: dict[str, Any] = {}  # V2beta1RecurringRun
        self.script: list[tuple[str, list[api.V2beta1PipelineTaskDetail]]] = [("SUCCEEDED", [])]
        self.outage = 0  # number of polls of a run that are answered with 503
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
        """Return the response to a call.

        Raises:
            ApiError: the call does not exist or is not allowed.
        """
        for verb, pattern, call in self.routes:
            if verb == method and (match := re.fullmatch(f"/apis/v2beta1/{pattern}", path)):
                return call(**match.groupdict(), query=query, body=body)
        raise ApiError(404, f"no such call: {method} {path}")

    def list_pipelines(self, query: dict[str, str], **_: Any) -> Any:
        found = [p for p in self.pipelines.values() if (p.namespace or "") == query.get("namespace", "")]
        return api.V2beta1ListPipelinesResponse(pipelines=filter_by_name(found, query))

    def create_pipeline(self, body: bytes, **_: Any) -> Any:
        created = read("V2beta1Pipeline", body)
        if any(
            p.display_name == created.display_name and p.namespace == created.namespace for p in self.pipelines.values()
        ):
            raise ApiError(409, f"pipeline {created.display_name} already exists")
        created.pipeline_id = str(uuid.uuid4())
        self.pipelines[created.pipeline_id] = created
        return created

    def list_versions(self, pipeline_id: str, query: dict[str, str], **_: Any) -> Any:
        found = [version for version in self.versions.values() if version.pipeline_id == pipeline_id]
        return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=filter_by_name(found, query))

    def upload_version(self, query: dict[str, str], body: bytes, **_: Any) -> Any:
        if query["pipelineid"] not in self.pipelines:
            raise ApiError(404, f"pipeline {query['pipelineid']} not found")
        ir, platform = yaml.load_all(body, yaml.CSafeLoader)
        spec = {"pipeline_spec": ir, "platform_spec": platform}
        created: Any = api.V2beta1PipelineVersion(
            pipeline_id=query["pipelineid"],
            pipeline_version_id=str(uuid.uuid4()),
            display_name=query["name"],
            pipeline_spec=spec,
        )
        self.versions[created.pipeline_version_id] = created
        return created

    def list_experiments(self, query: dict[str, str], **_: Any) -> Any:
        return api.V2beta1ListExperimentsResponse(experiments=filter_by_name(list(self.experiments.values()), query))

    def create_experiment(self, body: bytes, **_: Any) -> Any:
        created = read("V2beta1Experiment", body)
        created.experiment_id = str(uuid.uuid4())
        self.experiments[created.experiment_id] = created
        return created

    def create_run(self, body: bytes, **_: Any) -> Any:
        created = read("V2beta1Run", body)
        self._check_references(created)
        created.run_id, created.state = str(uuid.uuid4()), "PENDING"
        self.runs[created.run_id] = created
        return created

    def _check_references(self, created: Any) -> None:
        """Check that the version and the experiment of a run exist, and that the pipeline has its parameters."""
        version = self.versions.get(created.pipeline_version_reference.pipeline_version_id)
        if version is None or created.experiment_id not in self.experiments:
            raise ApiError(404, "pipeline version or experiment not found")
        root = version.pipeline_spec["pipeline_spec"]["root"]
        known = root["inputDefinitions"]["parameters"]
        if unknown := set(created.runtime_config.parameters or {}) - set(known):
            raise ApiError(400, f"unknown parameters: {sorted(unknown)}")

    def get_run(self, run_id: str, **_: Any) -> Any:
        if self.outage:
            self.outage -= 1
            raise ApiError(503, "upstream connect error")
        if run_id not in self.runs:
            raise ApiError(404, f"run {run_id} not found")
        run = self.runs[run_id]
        state, details = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        run.state, run.run_details = state, api.V2beta1RunDetails(task_details=details)
        return run

    def list_recurring(self, query: dict[str, str], **_: Any) -> Any:
        found = [job for job in self.recurring.values() if job.experiment_id == query.get("experiment_id")]
        return api.V2beta1ListRecurringRunsResponse(recurring_runs=filter_by_name(found, query))

    def create_recurring(self, body: bytes, **_: Any) -> Any:
        created = read("V2beta1RecurringRun", body)
        self._check_references(created)
        created.recurring_run_id, created.status = str(uuid.uuid4()), "ENABLED"
        self.recurring[created.recurring_run_id] = created
        return created

    def delete_recurring(self, recurring_run_id: str, **_: Any) -> Any:
        del self.recurring[recurring_run_id]
        return {}


def filter_by_name(found: list[Any], query: dict[str, str]) -> list[Any]:
    """Return the objects that match the filter of the query."""
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        assert predicate["operation"] in ("EQUALS", 1) and predicate["key"] == "display_name", predicate
        found = [each for each in found if each.display_name == predicate["stringValue"]]
    return found


def task(name: str, state: str, error: str = "", children: tuple[str, ...] = ()) -> api.V2beta1PipelineTaskDetail:
    """Return a task of a run, in the server's format; its id is its name."""
    return api.V2beta1PipelineTaskDetail(
        task_id=name,
        display_name=name,
        state=state,
        error=api.GoogleRpcStatus(code=2, message=error) if error else None,
        child_tasks=[api.PipelineTaskDetailChildTask(task_id=child) for child in children],
    )


@contextmanager
def serving(kubeflow: KubeflowPipelines) -> Iterator[str]:
    """Serve the API on a free port of this machine. Yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.serve()

        def do_POST(self) -> None:
            self.serve()

        def do_DELETE(self) -> None:
            self.serve()

        def serve(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            body: Any = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = self.headers.get("Content-Type", "")
            if kind.startswith("multipart/"):
                parts = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body).get_payload()
                body = parts[0].get_payload(decode=True)  # type: ignore[union-attr, index]
            try:
                if kubeflow.status != 200:
                    raise ApiError(kubeflow.status, "an error set by the test")
                if kubeflow.token and self.headers.get("Authorization") != f"Bearer {kubeflow.token}":
                    raise ApiError(401, "Request header error: there is no user identity header.")
                status, response = (
                    200,
                    CODEC.sanitize_for_serialization(kubeflow.answer(self.command, url.path, query, body)),
                )
            except ApiError as error:
                status, response = error.status, {"code": 2, "message": str(error), "details": []}
            text = json.dumps(response).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Do not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
