"""`vlmflow submit` against a fake server with the API of Kubeflow Pipelines, called over HTTP by KFP's own client."""

import io
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pipelines import flow
from pipelines.catalog import load_pipeline
from pipelines.kubeflow import Server
from pipelines.placement import load
from pipelines.submit import build_request, submit
from tests.conftest import vlmflow
from tests.pipelines.fake_kfp_server import KubeflowPipelines, serving, task
from vlmflow.config import recipes
from vlmflow.errors import RecipeError, ServiceError
from vlmflow.runtime.code_hash import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:This client only works:FutureWarning")


@pytest.fixture(scope="module")
def text() -> str:
    """The pipeline `end-to-end`, compiled for a cluster."""
    return flow.compile(load_pipeline("end-to-end"), load())


@pytest.fixture
def kubeflow() -> KubeflowPipelines:
    return KubeflowPipelines()


@pytest.fixture
def host(kubeflow: KubeflowPipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HOME", str(tmp_path))  # KFP's client stores settings there
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "VLMFLOW_KFP_TOKEN", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with serving(kubeflow) as address:
        yield address


def submit_command(tmp_path: Path, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return vlmflow(tmp_path, "submit", *arguments, *(("--host", host) if host else ()))


def submit_end_to_end(host: str, text: str, token: str = "", **options) -> tuple[bool, str]:
    """Submit `end-to-end` in this process. Returns whether the run succeeded, and the output."""
    console = Console(file=io.StringIO(), width=200)
    request = build_request("end-to-end", None, [], None)
    succeeded = submit(Server.from_env(host, token), request, text, console, experiment="tests", pause=0.01, **options)
    return succeeded, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_is_started_and_its_progress_printed(tmp_path: Path, host: str, kubeflow: KubeflowPipelines) -> None:
    kubeflow.script = [("SUCCEEDED", [task("root", "SUCCEEDED"), task("ingest", "SUCCEEDED")])]
    done = submit_command(tmp_path, host, "pretraining", "--recipe", "recipes/zoo/mae.yaml", "--set", "seed=3")
    assert done.returncode == 0, done.stderr
    assert "ingest: succeeded" in done.stdout and "root" not in done.stdout
    (run,) = kubeflow.runs.values()
    assert f"{host}/#/runs/details/{run.run_id}" in done.stdout
    assert run.display_name.startswith("pretraining: mae ")
    sent = recipes.parse(run.runtime_config.parameters["recipe"])
    assert sent == {**recipes.parse(str(ROOT / "recipes" / "zoo" / "mae.yaml")), "seed": 3}
    (version,) = kubeflow.versions.values()
    uploaded = version.pipeline_spec["pipeline_spec"]
    assert uploaded["pipelineInfo"]["name"] == "pretraining" and "comp-exit-handler-1" in uploaded["components"]
    assert version.pipeline_spec["platform_spec"]["platforms"]["kubernetes"]
    (experiment,) = kubeflow.experiments.values()
    assert experiment.display_name == "vlmflow" and run.experiment_id == experiment.experiment_id


def test_the_same_content_is_uploaded_once(host: str, kubeflow: KubeflowPipelines, text: str) -> None:
    assert "uploaded" in submit_end_to_end(host, text)[1] and "already uploaded" in submit_end_to_end(host, text)[1]
    assert len(kubeflow.pipelines) == len(kubeflow.versions) == 1 and len(kubeflow.runs) == 2
    assert all(not run.runtime_config.parameters for run in kubeflow.runs.values()), "the defaults are compiled in"
    submit_end_to_end(host, text.replace("MemoryLimit: 4Gi", "MemoryLimit: 5Gi"))
    assert len(kubeflow.pipelines) == 1 and len(kubeflow.versions) == 2


def test_each_state_change_of_a_task_is_one_line(host: str, kubeflow: KubeflowPipelines, text: str) -> None:
    kubeflow.script = [
        ("PENDING", []),
        ("RUNNING", [task("plan", "SUCCEEDED"), task("ingest", "RUNNING"), task("ingest-driver", "SUCCEEDED")]),
        ("RUNNING", [task("ingest", "RUNNING"), task("evaluate-2", "PENDING")]),
        ("SUCCEEDED", [task("ingest", "SUCCEEDED"), task("evaluate-2", "SUCCEEDED"), task("finish", "SUCCEEDED")]),
    ]
    kubeflow.outage = 2
    succeeded, printed = submit_end_to_end(host, text)
    states = [line.split(" ", 1)[1] for line in printed.splitlines() if line[2:3] == ":" and line[5:6] == ":"]
    assert succeeded
    assert states == [
        "plan: succeeded",
        "ingest: running",
        "evaluate caption: pending",
        "ingest: succeeded",
        "evaluate caption: succeeded",
        "finish: succeeded",
    ]


def test_a_failed_run_names_the_task_and_the_error(tmp_path: Path, host: str, kubeflow: KubeflowPipelines) -> None:
    kubeflow.script = [
        (
            "FAILED",
            [
                task("root", "FAILED", children=("validate",)),
                task("validate", "FAILED", children=("executor",)),
                task("executor", "FAILED", error="validate: 3 captions are empty"),
                task("finish", "SUCCEEDED"),
            ],
        )
    ]
    done = submit_command(tmp_path, host, "end-to-end")
    assert done.returncode == 1
    assert "error: validate: validate: 3 captions are empty" in done.stdout


def test_no_wait_returns_before_the_run_ends(host: str, kubeflow: KubeflowPipelines, text: str) -> None:
    kubeflow.script = [("FAILED", [])]
    assert submit_end_to_end(host, text, wait=False)[0] and len(kubeflow.runs) == 1
    assert not submit_end_to_end(host, text)[0]


def test_a_recurring_run_is_created_once_and_replaced_if_it_differs(
    host: str, kubeflow: KubeflowPipelines, text: str
) -> None:
    submit_end_to_end(host, text, cron="0 6 * * 1")
    (first,) = kubeflow.recurring
    job = kubeflow.recurring[first]
    assert job.trigger.cron_schedule.cron == "0 0 6 * * 1" and job.no_catchup and job.max_concurrency == "1"
    assert not kubeflow.runs
    succeeded, printed = submit_end_to_end(host, text, cron="0 6 * * 1")
    assert succeeded and list(kubeflow.recurring) == [first] and "already scheduled" in printed
    submit_end_to_end(host, text, cron="0 7 * * *")
    (second,) = kubeflow.recurring
    assert second != first
    with pytest.raises(RecipeError, match="five fields"):
        submit_end_to_end(host, text, cron="weekly")


def test_the_token_is_sent(
    host: str, kubeflow: KubeflowPipelines, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the argument, the environment, or the token file of a pod."""
    kubeflow.token = "secret"
    with pytest.raises(ServiceError, match=r"401: .*VLMFLOW_KFP_TOKEN: .*no user identity"):
        submit_end_to_end(host, text)
    assert submit_end_to_end(host, text, token="secret")[0]
    with monkeypatch.context() as patch:
        patch.setenv("VLMFLOW_KFP_TOKEN", "secret")
        assert submit_end_to_end(host, text)[0]
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert submit_end_to_end(host, text)[0]


@pytest.mark.parametrize(
    ("status", "parts"),
    [(302, ("401", "authentication failed", "--token")), (403, ("403", "--namespace")), (404, ("404", "/pipeline"))],
)
def test_an_http_error_names_the_remedy(
    status: int, parts: tuple[str, ...], host: str, kubeflow: KubeflowPipelines, text: str
) -> None:
    kubeflow.status = status
    with pytest.raises(ServiceError) as error:
        submit_end_to_end(host, text)
    assert all(part in str(error.value) for part in (host, *parts))


def test_a_missing_server_is_an_error(host: str, text: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ServiceError, match="does not answer"):
            submit_end_to_end(f"http://127.0.0.1:{unused.getsockname()[1]}", text)
    with pytest.raises(ServiceError, match="no Kubeflow Pipelines host; pass --host"):
        submit_end_to_end("", text)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("end-to-edn", None, [], None), ("end-to-edn", "'end-to-end'")),
        (("end-to-end", None, [], "HEAD"), ("--data-rev HEAD", "'end-to-end'")),
        (("end-to-end", "recipes/zoo/mae.yaml", [], None), ("'pretraining'", "'end-to-end'")),
        (("end-to-end", None, ["ocr.training.max_stps=3"], None), ("max_stps", "'max_steps'")),
    ],
)
def test_an_invalid_request_is_rejected(arguments: tuple, parts: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as error:
        build_request(*arguments)
    assert all(part in str(error.value) for part in parts)


def test_a_request_has_only_the_changed_parameters() -> None:
    assert build_request("train", None, [], "v1").parameters == {"data_rev": "v1"}
    changed = build_request("end-to-end", None, ["seed=5"], None).parameters["recipe"]
    assert yaml.safe_load(changed) == {**recipes.parse(str(ROOT / "recipes" / "demo.yaml")), "seed": 5}
    check = build_request("zoo-check", "recipes/zoo/mae.yaml", [], None).parameters["recipe"]
    assert {"untrained", "trained", "shuffled"} <= set(yaml.safe_load(check))


def test_the_submit_commands_of_the_documentation_work(tmp_path: Path, host: str, kubeflow: KubeflowPipelines) -> None:
    texts = ((ROOT / name).read_text().splitlines() for name in ("README.md", "docs/on-kubeflow.md"))
    lines = [line.split("#")[0] for text in texts for line in text]
    documented = [line for line in lines if line.removeprefix(".venv/bin/").startswith("vlmflow submit")]
    commands = [shlex.split(line.replace("http://localhost:8080", host))[1:] for line in documented]
    assert [command[1] for command in commands] == [
        "end-to-end",
        "monitor-champion",
        "end-to-end",
        "sweep",
        "monitor-champion",
    ]
    for command in commands:
        done = vlmflow(tmp_path, *command, KF_PIPELINES_ENDPOINT=host)
        assert done.returncode == 0, done.stderr
    assert len(kubeflow.runs) == 3 and len(kubeflow.recurring) == 1
