"""The smoke test on this machine: a real predictor process is started, tested and stopped."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from components.deploy.deployment import DeployConfig, deploy
from components.deploy.smoke_test import local_predictor, smoke_test
from models.tiny.build import build_dual_encoder
from tests.deploy.conftest import pairs, png, version
from vlmflow.artifacts import dataset
from vlmflow.artifacts.checkpoint import save
from vlmflow.errors import DataError, ServiceError


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = build_dual_encoder(["a red circle"] * 20, vision_layers=1, text_layers=1)
    return save(tmp_path_factory.mktemp("models"), *built, family="tiny-dual-encoder", step="pretrain").path


def predictors(parent: int | None = None) -> list[int]:
    """Return the process ids of the predictors that this process, or the process `parent`, has started."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "vlmflow.serving.server" in child.cmdline():
                found.append(child.pid)
    return found


def test_both_protocols_are_tested_and_the_predictor_is_stopped(model: Path, tmp_path: Path) -> None:
    before = predictors()
    data = pairs(tmp_path / "pairs", "test")
    section = DeployConfig(storage="pvc://models/vlm/1", prompt="a red circle")
    deploy(model, version(tmp_path, model), data, tmp_path / "manifest", tmp_path / "transcript", "image:abc", section)
    record = json.loads((tmp_path / "transcript/transcript.json").read_text())
    _listing, predicted, chatted = record["exchanges"]
    assert [e["status"] for e in record["exchanges"]] == [200, 200, 200]
    answer = predicted["response"]["predictions"][0]["answer"]
    assert answer == chatted["response"]["choices"][0]["message"]["content"]
    assert predicted["request"]["instances"][0] == {"image": {"b64": "…"}, "prompt": "a red circle"}
    assert all(e["latency_ms"] > 0 for e in record["exchanges"])
    assert record["image"] == next(dataset.Dataset(data).rows(["uid"]))["uid"]
    assert (record["target"], record["version"]) == ("local", "1")
    assert sorted(path.name for path in (tmp_path / "manifest").iterdir()) == [
        "inferenceservice.yaml",
        "servingruntime.yaml",
    ]
    assert predictors() == before


def test_the_log_of_a_predictor_that_exits_is_in_the_error(tmp_path: Path) -> None:
    message = r"(?s)exited with code 2; its log ends:.*not a checkpoint"
    with pytest.raises(ServiceError, match=message), local_predictor(tmp_path, "vlm", timeout=90):
        pass


def test_a_predictor_that_is_not_ready_in_time_is_stopped(model: Path) -> None:
    before = predictors()
    with (
        pytest.raises(ServiceError, match=r"not ready in 0\.2 s \(deploy\.timeout\)"),
        local_predictor(model, "vlm", 0.2),
    ):
        pass
    assert predictors() == before


def test_a_predictor_stops_when_its_step_is_killed(embedder: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from components.deploy.smoke_test import local_predictor
with local_predictor(Path({str(embedder)!r}), "eye", 90) as url:
    print(url, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as step:
        assert step.stdout is not None
        url = step.stdout.readline().decode().strip()
        exchanges = smoke_test(url, "eye", png(), "what is it")
        (started,) = predictors(step.pid)
        process = psutil.Process(started)
        os.kill(step.pid, signal.SIGKILL)
        psutil.wait_procs([process], timeout=20)
    assert not process.is_running()
    # This model cannot chat, so the smoke test asks for an embedding.
    assert exchanges[-1]["protocol"] == "V1 predict"
    assert math.hypot(*exchanges[-1]["response"]["predictions"][0]["embedding"]) == pytest.approx(1, abs=1e-4)


def test_nothing_is_started_without_a_test_image(model: Path, tmp_path: Path) -> None:
    data = pairs(tmp_path / "pairs", "train")
    with pytest.raises(DataError, match="the test split is empty"):
        deploy(
            model,
            version(tmp_path, model),
            data,
            tmp_path / "m",
            tmp_path / "t",
            "image:abc",
            DeployConfig(storage="pvc://a/b"),
        )
    assert not (tmp_path / "t").exists()


def fake_server(answers: dict[str, Any]) -> httpx.MockTransport:
    """A server with these answers by path; other paths get a 404."""

    def answer(request: httpx.Request) -> httpx.Response:
        response = answers.get(request.url.path)
        return httpx.Response(404) if response is None else httpx.Response(200, **response)

    return httpx.MockTransport(answer)


def run_smoke_test(answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[dict[str, Any]]:
    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **given: client(transport=fake_server(answers), **given))
    return smoke_test("http://endpoint", "vlm", png(), "what is it", **options)


def test_a_foreign_server_is_tested_through_chat_only(monkeypatch: pytest.MonkeyPatch) -> None:
    completion = {"choices": [{"message": {"content": "a circle"}}]}
    answers = {"/v1/models": {"json": {"data": [{"id": "vlm"}]}}, "/v1/chat/completions": {"json": completion}}
    exchanges = run_smoke_test(answers, monkeypatch, openai="/v1", host="vlm.models")
    assert [exchange["protocol"] for exchange in exchanges] == ["OpenAI models", "OpenAI chat"]


@pytest.mark.parametrize("content", [{"text": "<html>log in"}, {"json": {"data": []}}, {"json": []}])
def test_a_response_outside_the_protocol_is_an_error(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceError, match="vlm at http://endpoint: the response does not follow its protocol"):
        run_smoke_test({"/openai/v1/models": content}, monkeypatch)


def test_the_target_manifest_starts_nothing(model: Path, tmp_path: Path) -> None:
    data = pairs(tmp_path / "pairs", "train")  # no test image is needed
    section = DeployConfig(target="manifest", storage="pvc://models/vlm/1")
    before = predictors()
    deploy(model, version(tmp_path, model), data, tmp_path / "manifest", tmp_path / "transcript", "image:abc", section)
    record = json.loads((tmp_path / "transcript/transcript.json").read_text())
    assert record == {"model": "vlm", "version": "1", "target": "manifest", "exchanges": []}
    assert (tmp_path / "manifest/servingruntime.yaml").is_file() and predictors() == before
