"""`vlmflow submit` against the API of Kubeflow Pipelines, spoken by KFP's own client over HTTP."""

import io
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pipelines.catalog import load_pipeline
from pipelines.flow import compile
from pipelines.kubeflow import Server
from pipelines.placement import load
from pipelines.submit import build_request, submit
from tests.conftest import vlmflow
from tests.pipelines.fake_kfp_server import KubeflowPipelines, serving, task
from vlmflow.config import recipes as recipes
from vlmflow.errors import RecipeError, ServiceError
from vlmflow.runtime.code_hash import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:This client only works:FutureWarning")


@pytest.fixture(scope="module")
def text() -> str:
    """The pipeline `life` for a cluster."""
    return compile(load_pipeline("end-to-end"), load())


@pytest.fixture
def kubeflow() -> KubeflowPipelines:
    return KubeflowPipelines()


@pytest.fixture
def host(kubeflow: KubeflowPipelines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HOME", str(tmp_path))  # KFP's client keeps settings there
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "VLMFLOW_KFP_TOKEN", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with serving(kubeflow) as address:
        yield address


def called(tmp_path: Path, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return vlmflow(tmp_path, "submit", *arguments, *(("--host", host) if host else ()))


def given(host: str, text: str, token: str = "", **options) -> tuple[bool, str]:
    """Submit `life` in this process; whether it went well, and what was printed."""
    console = Console(file=io.StringIO(), width=200)
    wanted = build_request("end-to-end", None, [], None)
    well = submit(Server.from_env(host, token), wanted, text, console, experiment="tests", pause=0.01, **options)
    return well, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_is_started_and_followed(tmp_path: Path, host: str, kubeflow: KubeflowPipelines) -> None:
    kubeflow.script = [("SUCCEEDED", [task("root", "SUCCEEDED"), task("ingest", "SUCCEEDED")])]
    done = called(tmp_path, host, "pretraining", "--recipe", "recipes/zoo/mae.yaml", "--set", "seed=3")
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
    assert "uploaded" in given(host, text)[1] and "there already" in given(host, text)[1]
    assert len(kubeflow.pipelines) == len(kubeflow.versions) == 1 and len(kubeflow.runs) == 2
    assert all(not run.runtime_config.parameters for run in kubeflow.runs.values()), "the defaults are compiled in"
    given(host, text.replace("MemoryLimit: 4Gi", "MemoryLimit: 5Gi"))
    assert len(kubeflow.pipelines) == 1 and len(kubeflow.versions) == 2


def test_each_change_of_a_task_is_one_line(host: str, kubeflow: KubeflowPipelines, text: str) -> None:
    kubeflow.script = [
        ("PENDING", []),
        ("RUNNING", [task("ingest", "RUNNING"), task("ingest-driver", "SUCCEEDED")]),
        ("RUNNING", [task("ingest", "RUNNING"), task("evaluate-2", "PENDING")]),
        ("SUCCEEDED", [task("ingest", "SUCCEEDED"), task("evaluate-2", "SUCCEEDED"), task("finish", "SUCCEEDED")]),
    ]
    kubeflow.outage = 2
    well, printed = given(host, text)
    said = [line.split(" ", 1)[1] for line in printed.splitlines() if line[2:3] == ":" and line[5:6] == ":"]
    assert well
    assert said == [
        "ingest: running",
        "evaluate caption: pending",
        "ingest: succeeded",
        "evaluate caption: succeeded",
        "finish: succeeded",
    ]


def test_a_run_that_failed_says_which_task_and_why(tmp_path: Path, host: str, kubeflow: KubeflowPipelines) -> None:
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
    done = called(tmp_path, host, "end-to-end")
    assert done.returncode == 1
    assert "error: validate: validate: 3 captions are empty" in done.stdout


def test_a_run_that_is_not_followed(host: str, kubeflow: KubeflowPipelines, text: str) -> None:
    kubeflow.script = [("FAILED", [])]
    assert given(host, text, wait=False)[0] and len(kubeflow.runs) == 1
    assert not given(host, text)[0]


def test_a_recurring_run_is_made_once_and_replaced_when_it_differs(
    host: str, kubeflow: KubeflowPipelines, text: str
) -> None:
    given(host, text, cron="0 6 * * 1")
    (first,) = kubeflow.recurring
    job = kubeflow.recurring[first]
    assert job.trigger.cron_schedule.cron == "0 0 6 * * 1" and job.no_catchup and job.max_concurrency == "1"
    assert not kubeflow.runs
    well, printed = given(host, text, cron="0 6 * * 1")
    assert well and list(kubeflow.recurring) == [first] and "recurs already" in printed
    given(host, text, cron="0 7 * * *")
    (second,) = kubeflow.recurring
    assert second != first
    with pytest.raises(RecipeError, match="five fields"):
        given(host, text, cron="weekly")


def test_the_token_is_sent(
    host: str, kubeflow: KubeflowPipelines, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is given, from the environment, or out of the file that a pod has; and renewed with it."""
    kubeflow.token = "secret"
    with pytest.raises(ServiceError, match=r"401: .*VLMFLOW_KFP_TOKEN: .*no user identity"):
        given(host, text)
    assert given(host, text, token="secret")[0]
    with monkeypatch.context() as patch:
        patch.setenv("VLMFLOW_KFP_TOKEN", "secret")
        assert given(host, text)[0]
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert given(host, text)[0]


@pytest.mark.parametrize(
    ("status", "parts"),
    [(302, ("401", "log in", "--token")), (403, ("403", "--namespace")), (404, ("404", "/pipeline"))],
)
def test_a_refusal_says_what_to_do(
    status: int, parts: tuple[str, ...], host: str, kubeflow: KubeflowPipelines, text: str
) -> None:
    kubeflow.status = status
    with pytest.raises(ServiceError) as refusal:
        given(host, text)
    assert all(part in str(refusal.value) for part in (host, *parts))


def test_nobody_there(host: str, text: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ServiceError, match="does not answer"):
            given(f"http://127.0.0.1:{unused.getsockname()[1]}", text)
    with pytest.raises(ServiceError, match="no host: give --host"):
        given("", text)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("end-to-edn", None, [], None), ("end-to-edn", "'end-to-end'")),
        (("end-to-end", None, [], "HEAD"), ("--data-rev HEAD", "'end-to-end'")),
        (("end-to-end", "recipes/zoo/mae.yaml", [], None), ("'pretraining'", "'end-to-end'")),
        (("end-to-end", None, ["ocr.training.max_stps=3"], None), ("max_stps", "'max_steps'")),
    ],
)
def test_an_order_that_makes_no_sense(arguments: tuple, parts: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as refusal:
        build_request(*arguments)
    assert all(part in str(refusal.value) for part in parts)


def test_orders() -> None:
    assert build_request("train", None, [], "v1").parameters == {"data_rev": "v1"}
    changed = build_request("end-to-end", None, ["seed=5"], None).parameters["recipe"]
    assert yaml.safe_load(changed) == {**recipes.parse(str(ROOT / "recipes" / "demo.yaml")), "seed": 5}
    check = build_request("zoo-check", "recipes/zoo/mae.yaml", [], None).parameters["recipe"]
    assert {"untrained", "trained", "shuffled"} <= set(yaml.safe_load(check))


def test_what_the_readme_and_the_docs_say(tmp_path: Path, host: str, kubeflow: KubeflowPipelines) -> None:
    texts = ((ROOT / name).read_text().splitlines() for name in ("README.md", "docs/on-kubeflow.md"))
    lines = [line.split("#")[0] for text in texts for line in text]
    said = [line for line in lines if line.removeprefix(".venv/bin/").startswith("vlmflow submit")]
    commands = [shlex.split(line.replace("http://localhost:8080", host))[1:] for line in said]
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
