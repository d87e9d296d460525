"""README and docs: generated parts are up to date, links lead to files, commands exist and work."""

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
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]
BLOCKS = [block for page in PAGES for block in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)]
COMMANDS = [
    line.split("  #")[0].strip()
    for page in PAGES
    if page.name != "on-kubeflow.md"  # tests/pipelines/test_submit.py submits its commands
    for kind, text in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)
    if kind == "bash"
    for line in text.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("file", GENERATED)
def test_generated_parts_are_up_to_date(file: str) -> None:
    assert updated(file) == (ROOT / file).read_text(encoding="utf-8"), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([\w/.-]+)(?:#[\w-]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_every_command_exists() -> None:
    """Each line is a make target, a command of vlmflow with existing options, or a known command of another tool."""
    help_text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in filter(None, COMMANDS):
        words = shlex.split(command.split(" && ")[0])
        if words[0] == "make":
            assert words[1] in targets, command
        elif words[0] == "vlmflow":
            assert f"vlmflow {words[1]}" in help_text, command
            options = [word for word in words[2:] if word.startswith("--")]
            assert all(f"`{option}" in help_text for option in options), command
        elif words[:2] == ["python", "-m"]:
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").exists(), command
        else:
            assert words[0] in {"dvc", "curl", "kubectl", "pip"}, command
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(target in listed for target in targets)


def test_the_run_commands_have_valid_recipes(tmp_path: Path) -> None:
    """The recipes with the documented settings are valid; the pipeline itself runs in test_end_to_end."""
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


def test_the_serve_and_client_examples_work(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", (64, 64), "gray")
    ImageDraw.Draw(image).ellipse((10, 10, 40, 40), fill="red")
    image.save(tmp_path / "image.png")
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
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
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
