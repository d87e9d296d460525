"""The README is true: its table, its paths and its commands."""

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageDraw

from pipelines.docs import GENERATED, updated
from tests.conftest import vlmflow
from vlmflow.runtime.code_hash import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


@pytest.mark.parametrize("file", GENERATED)
def test_generated_parts_are_as_they_would_be_written_now(file: str) -> None:
    assert updated(file) == (ROOT / file).read_text(encoding="utf-8"), "run `make docs`"


def test_every_path_exists() -> None:
    named = re.findall(r"\]\(([\w/.-]+)\)", README) + re.findall(
        r"\b((?:recipes|pipelines|models|docs)/[\w/.-]+\.\w+)", README
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_command_is_one_of_ours() -> None:
    """Each line is a make target, a vlmflow command that the tests below run, or dvc, curl and openai likewise."""
    known = {"make demo", "make test", "dvc repro", "dvc push", "vlmflow ui", "vlmflow serve models:/vlm@champion",
             "vlmflow lineage models:/vlm@champion",
             "vlmflow takedown 3f2a5c0d9e8b4a6f8c1d2e3f4a5b6c7d", "vlmflow explain 3f2a",
             "vlmflow data-ablation recipes/data-ablation.yaml",
             "vlmflow export data/curated shards", "make benchmark-data", "make images", "vlmflow zoo",
             "vlmflow zoo check mae", "vlmflow compile --out compiled", "vlmflow submit end-to-end --host http://localhost:8080",
             "vlmflow submit monitor-champion --cron '0 6 * * 1'"}  # fmt: skip
    for command in COMMANDS:
        if command and not command.startswith(("vlmflow run", "curl", "-d")):
            assert command in known, command
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "check", "help"} <= set(targets)
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(target in listed for target in targets)


def test_the_run_commands_load(tmp_path: Path) -> None:
    """Both recipes with the README's own settings are read strictly; the life itself runs in test_life."""
    from components.plan.sections import check
    from vlmflow.config import recipes

    for command in [c for c in COMMANDS if c.startswith("vlmflow run")]:
        _, _, path, *rest = [part for part in shlex.split(command) if part != "--containers"]  # a flag of the runner
        given = [value for option, value in zip(rest[::2], rest[1::2], strict=True) if option == "--set"]
        check(recipes.override(recipes.parse(str(ROOT / path)), given))


def test_lineage_of_the_champion(finished_run: Path) -> None:
    done = vlmflow(finished_run.parent, "lineage", "models:/vlm@champion")
    assert done.returncode == 0, done.stderr
    assert "by ingest (710 pairs)" in done.stdout and "champion" in done.stdout
    as_json = vlmflow(finished_run.parent, "lineage", "models:/vlm@champion", "--json")
    assert json.loads(as_json.stdout)


def test_serve_and_call_as_the_readme_says(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (64, 64), "gray")
    ImageDraw.Draw(picture).ellipse((10, 10, 40, 40), fill="red")
    picture.save(tmp_path / "picture.png")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path / "log").open("w")
    command = [str(Path(sys.executable).parent / "vlmflow"), "serve", "models:/vlm@champion", "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, env=_environment(finished_run.parent), stdout=log, stderr=log)
    log.close()
    try:
        _wait(f"http://127.0.0.1:{port}/v2/health/ready", server, tmp_path / "log")
        curl = next(text for kind, text in BLOCKS if kind == "bash" and text.startswith("curl"))
        done = subprocess.run(
            ["bash", "-c", curl.replace("localhost:8080", f"127.0.0.1:{port}")],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "answer" in json.loads(done.stdout)["predictions"][0]
        monkeypatch.chdir(tmp_path)
        code = next(text for kind, text in BLOCKS if kind == "python").replace("localhost:8080", f"127.0.0.1:{port}")
        said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
    finally:
        server.terminate()
        assert server.wait(20) == 0


def test_the_ui_shows_the_runs(finished_run: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path / "log").open("w")
    command = [str(Path(sys.executable).parent / "vlmflow"), "ui", "--port", str(port)]
    server = subprocess.Popen(
        command, cwd=ROOT, env=_environment(finished_run.parent), stdout=log, stderr=log, start_new_session=True
    )
    log.close()
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
        found = httpx.post(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search", json={"experiment_ids": ["1"], "max_results": 200}
        ).json()["runs"]
        names = {run["info"]["run_name"] for run in found}
        assert {"curate", "ground", "evaluate-align"} <= names
    finally:
        subprocess.run(["pkill", "-TERM", "-s", str(server.pid)], check=True)
        server.wait(30)


def _environment(home: Path) -> dict[str, str]:
    import os

    return {**os.environ, "VLMFLOW_HOME": str(home)}


def _wait(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
