"""The final status of a run on a cluster in MLflow, in the UI and at a webhook, with the step run as in its pod."""

import base64
import gzip
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient

from components.finish import workflow
from components.finish.exit_handler import RunStatus, final_status, headline, post_to_webhook
from tests.conftest import executor_input
from tests.runtime.test_step_in_pod import run_pod
from vlmflow.errors import ServiceError
from vlmflow.tracking import mlflow_store, step_run

RUN = "run-1"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """One store, whose creation takes seconds; each test has its own KFP run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")
        patch.delenv("VLMFLOW_TRACKING", raising=False)
        yield mlflow_store.client()


class Webhook(HTTPServer):
    """Stores the posted bodies; `status` is the status of its responses."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Listener)
        self.bodies: list[dict[str, Any]] = []
        self.status = 200

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/secret"


class Listener(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def record(label: str, status: str, error: str | None = None, run: str = RUN) -> dict[str, Any]:
    """A step's record, as `vlmflow.runtime.pod_step` creates it."""
    return {"label": label, "step": label.split("-")[0], "status": status, "seconds": 7.0, "error": error,
            "kfp_run": run, "input_paths": {}}  # fmt: skip


def finish(tmp_path: Path, status: dict[str, Any], run: str = RUN, **environment: str) -> str:
    """Run the step as in a pod; returns its summary."""
    given = executor_input(tmp_path / "finish", {"pipeline": "life", "status": status}, {}, ["summary"])  # type: ignore[dict-item]
    done = run_pod(tmp_path, "finish", given, run, MLFLOW_TRACKING_URI=mlflow_store.uri(), **environment)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "finish" / "summary").read_text()


def test_a_failure_is_reported_with_its_step_and_its_error(
    tmp_path: Path, store: MlflowClient, webhook: Webhook
) -> None:
    parent = step_run.find_or_create_pipeline_run(RUN)
    step_run.log_step(record("ingest", "failed", "the store was away"), parent)
    step_run.log_step(record("ingest", "done"), parent)  # KFP retried it
    step_run.log_step(record("validate-raw", "failed", "3 captions are empty"), parent)
    status = {"state": "FAILED", "pipelineTaskName": "exit-handler-1", "error": {"code": 9, "message": "a task failed"}}
    summary = finish(tmp_path, status, VLMFLOW_WEBHOOK=webhook.address)
    run = store.get_run(parent)
    assert run.info.status == "FAILED" and run.data.tags["pipeline"] == "life"
    assert run.data.tags["error"] == "life failed: validate-raw: 3 captions are empty"
    assert summary.startswith("**life failed: validate-raw: 3 captions are empty**\n")
    assert "| validate-raw | failed | 7 |  |" in summary
    assert webhook.bodies == [{"text": f"vlmflow: life failed: validate-raw: 3 captions are empty (KFP run {RUN})"}]


def test_a_success_is_reported_with_scores(tmp_path: Path, store: MlflowClient) -> None:
    parent = step_run.find_or_create_pipeline_run("run-2")
    step_run.log_step(record("ingest", "done", run="run-2"), parent)
    (tmp_path / "scores").mkdir()
    found = {"capabilities": {"zero-shot": {"value": 0.25}, "yes no": {"value": 0.5}}}
    (tmp_path / "scores" / "scores.json").write_text(json.dumps(found))
    step_run.log_step(
        {**record("evaluate-read", "done", run="run-2"), "outputs": {"scores": {"path": str(tmp_path / "scores")}}},
        parent,
    )
    summary = finish(tmp_path, {"state": "SUCCEEDED"}, "run-2")
    assert summary.startswith("**life has finished**")
    assert "| evaluate-read | done | 7 | yes_no 0.500, zero-shot 0.250 |" in summary
    run = store.get_run(parent)
    assert run.info.status == "FINISHED" and "error" not in run.data.tags


def test_without_mlflow_the_error_of_kfp_is_reported(tmp_path: Path) -> None:
    status = {"state": "FAILED", "error": {"code": 9, "message": "a task failed"}}
    given = executor_input(tmp_path / "finish", {"pipeline": "life", "status": status}, {}, ["summary"])  # type: ignore[dict-item]
    done = run_pod(tmp_path, "finish", given, RUN, MLFLOW_TRACKING_URI="")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "finish" / "summary").read_text() == "**life failed: a task failed**\n\n"


def test_with_mlflow_unreachable_the_webhook_is_called_before_the_step_fails(tmp_path: Path, webhook: Webhook) -> None:
    status = {"state": "FAILED", "error": {"code": 9, "message": "a task failed"}}
    given = executor_input(tmp_path / "finish", {"pipeline": "life", "status": status}, {}, ["summary"])  # type: ignore[dict-item]
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "VLMFLOW_MLFLOW_WAIT": "0", "VLMFLOW_WEBHOOK": webhook.address}
    done = run_pod(tmp_path, "finish", given, RUN, **away)
    assert done.returncode == 2 and "127.0.0.1:9" in done.stderr and "Traceback" not in done.stderr
    assert webhook.bodies == [{"text": f"vlmflow: life failed: a task failed (KFP run {RUN})"}]


def test_a_failing_webhook_is_a_warning_without_its_url(webhook: Webhook, caplog: pytest.LogCaptureFixture) -> None:
    webhook.status = 500
    post_to_webhook(webhook.address, "text")
    post_to_webhook("http://127.0.0.1:9/hooks/secret", "text")
    post_to_webhook("nonsense", "text")
    assert len(caplog.messages) == 3 and "HTTP status 500" in caplog.messages[0]
    assert not any("secret" in message for message in caplog.messages)


def test_a_cancelled_run_is_not_failed() -> None:
    assert headline(RunStatus("life", "CANCELLED", ""), []) == "life was cancelled"
    assert RunStatus("life", "CANCELED", "").status == "KILLED"


def workflow_of(phase: str, message: str = "", spec: dict[str, Any] | None = None, others: Any = ()) -> dict[str, Any]:
    """Argo's workflow of a run while its exit handler runs.

    Args:
        phase: the phase of the group of steps before the exit handler.
        others: the phases of further nodes.
    """
    phases = {"root": "Running", "exit-handler-1": phase, "exit-handler-1.onExit": "Running", "finish": "Running"}
    nodes = {name: {"displayName": name, "phase": found} for name, found in {**phases, **dict(others)}.items()}
    nodes["exit-handler-1"]["message"] = message
    return {"spec": spec or {}, "status": {"phase": "Running", "nodes": nodes}}


def compressed(found: dict[str, Any]) -> dict[str, Any]:
    """The same with compressed nodes, as Argo stores them when they are large."""
    packed = base64.b64encode(gzip.compress(json.dumps(found["status"]["nodes"]).encode())).decode()
    return {**found, "status": {"phase": "Running", "compressedNodes": packed}}


@pytest.mark.parametrize("pack", [dict, compressed])
@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # In a loop or a retry a node may have failed although the group has not.
        (
            workflow_of("Succeeded", others={"iteration-item(0:0)": "Succeeded", "ingest(0)": "Failed"}),
            ("SUCCEEDED", ""),
        ),
        (workflow_of("Succeeded", others={"ingest": "Omitted", "curate": "Skipped"}), ("SUCCEEDED", "")),  # all cached
        (workflow_of("Failed", "child 'validate' failed"), ("FAILED", "child 'validate' failed")),
        (workflow_of("Error", "pod deleted"), ("FAILED", "pod deleted")),
        (workflow_of("Failed", "deadline", {"activeDeadlineSeconds": 0}), ("CANCELED", "")),
        (workflow_of("Failed", "stopped", {"shutdown": "Stop"}), ("CANCELED", "")),
        (workflow_of("Running"), None),
        ({"status": {}}, None),
    ],
)
def test_the_outcome_of_a_workflow(pack: Any, found: dict[str, Any], expected: tuple[str, str] | None) -> None:
    assert workflow.outcome(pack(found) if "nodes" in found["status"] else found) == expected


@pytest.mark.parametrize(
    ("state", "found", "expected"),
    [
        ("RUNNING", workflow_of("Succeeded"), ("FINISHED", "life has finished")),
        ("FAILED", workflow_of("Succeeded"), ("FINISHED", "life has finished")),  # a retry succeeded
        ("RUNNING", workflow_of("Failed", "child 'x' failed"), ("FAILED", "life failed: child 'x' failed")),
        ("CACHED", None, ("FINISHED", "life has finished")),
        ("COMPLETE", ServiceError("no cluster"), ("FINISHED", "life has finished")),
        ("CANCELED", ServiceError("no cluster"), ("KILLED", "life was cancelled")),
        ("RUNNING", ServiceError("no cluster"), ("FAILED", "life failed: unknown: KFP passed the state RUNNING")),
    ],
)
def test_the_workflow_decides_and_not_the_state_that_kfp_passes(
    state: str, found: Any, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(kfp_run: str) -> Any:
        assert kfp_run == RUN
        if isinstance(found, ServiceError):
            raise found
        return found

    monkeypatch.setattr(workflow, "find_workflow", find)
    status = final_status("life", state, "", RUN)
    assert status.status == expected[0] and headline(status, []).startswith(expected[1])


def test_the_workflow_is_found_by_the_label_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls.append(self.path)
            body = json.dumps({"items": [workflow_of("Succeeded")]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        config = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "kubeflow"}}],
            "current-context": "x",
        }
        (tmp_path / "config").write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        found = workflow.find_workflow(RUN)
        server.shutdown()
        thread.join()
    assert found is not None and workflow.outcome(found) == ("SUCCEEDED", "")
    [path] = calls
    assert re.fullmatch(r"/apis/argoproj.io/v1alpha1/namespaces/[\w-]+/workflows\?labelSelector=(.+)", path)
    assert unquote(path).endswith(f"=pipeline/runid={RUN}")
