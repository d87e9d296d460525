"""The end-to-end pipeline on a small recipe: its results, its outputs, a second run, a killed run, other data."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from components.fetch.config import FetchConfig
from components.fetch.dvc import fetch
from tests.conftest import vlmflow
from vlmflow.artifacts.dataset import Dataset
from vlmflow.runtime.code_hash import ROOT

STAGES = ["contrastive", "caption", "ground", "ocr", "align", "control"]


def test_the_summary_has_every_step_and_score(summary: dict) -> None:
    assert len(summary["steps"]) == 23
    assert all(step["took"] > 0 and step["peak_mb"] > 0 for step in summary["steps"].values())
    results = summary["results"]
    rows = results["rows"]
    assert rows["rows_in"] == rows["kept"] + sum(rows["dropped"].values())
    assert sorted(results["stages"]) == sorted(STAGES)
    last = results["stages"]["align"]
    assert {
        "retrieval",
        "zero-shot",
        "objects",
        "hallucination",
        "grounding",
        "ocr",
        "pope",
        "preference",
    } <= set(last)
    for score in last.values():
        assert score["low"] <= score["value"] <= score["high"]
        assert set(score["controls"]) == {"blank", "shuffled"}
    assert set(results["stages"]["contrastive"]) == {"retrieval", "zero-shot"}
    assert results["version"]["alias"] == "champion"


def test_the_report_is_one_file_without_external_links(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text()
    assert len(page) > 20_000
    outside = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']+|url\((?!["']?(?:data:|#))[^)]+|@import""", page)
    assert not outside, outside[:5]


def test_a_second_run_reuses_every_step_from_the_cache(finished_run: Path, summary: dict) -> None:
    done = vlmflow(finished_run.parent, "run", "recipes/mini.yaml")
    assert done.returncode == 0, done.stderr
    again = json.loads((finished_run.parent / "latest" / "summary.json").read_text())
    ran = [name for name, step in again["steps"].items() if not step["cached"]]
    assert set(ran) <= {"gate", "register"}  # their result depends on the registry
    assert again["results"] == summary["results"]


@pytest.mark.soak
def test_a_killed_run_resumes_with_the_same_results(finished_run: Path, summary: dict, tmp_path: Path) -> None:
    """The cache contains the steps up to `ocr`. The run is killed in `align`, after `preferences`, and restarted."""
    cache = tmp_path / ".step_cache"
    cache.mkdir()
    cached_steps = {
        "ingest",
        "validate",
        "validate-2",
        "validate-3",
        "curate",
        "instructions",
        "pretrain",
        "caption",
        "ground",
        "ocr",
    }
    for entry in (finished_run.parent / ".step_cache").glob("*.json"):
        outputs = json.loads(entry.read_text())["outputs"].values()
        if {Path(output["path"]).parent.name for output in outputs} <= cached_steps:
            shutil.copy2(entry, cache)
    command = [str(Path(sys.executable).parent / "vlmflow"), "run", "recipes/mini.yaml"]
    environment = {"VLMFLOW_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("*/*/align.partial")):
        assert time.monotonic() < deadline and process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=True)
    assert process.wait() == -signal.SIGKILL
    done = vlmflow(tmp_path, "run", "recipes/mini.yaml")
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "latest" / "summary.json").read_text())
    assert again["steps"]["preferences"]["cached"] and not again["steps"]["align"]["cached"]
    assert not list(tmp_path.glob("*/*/*.partial"))
    del again["results"]["version"], summary["results"]["version"]  # the ids of the registry differ
    assert again["results"] == summary["results"]


def test_the_same_steps_train_model_classes_of_transformers(tmp_path: Path) -> None:
    done = vlmflow(tmp_path, "run", "recipes/mini-stock.yaml", "--set", "deploy=null")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    results = json.loads((tmp_path / "latest" / "summary.json").read_text())["results"]
    assert results["skipped"]["ocr"] == "the recipe has no section 'ocr'"
    config = json.loads((tmp_path / "latest" / "ground" / "model" / "config.json").read_text())
    assert config["model_type"] == "idefics3"
    assert {"objects", "grounding", "preference"} <= set(results["stages"]["align"])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images with captions, without boxes or lines of text. One image is not readable."""
    folder = tmp_path / "images"
    folder.mkdir()
    rows = []
    colours = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
    for i in range(96):
        colour, shape = colours[i % 8], ("disc", "bar", "frame")[i % 3]
        image = Image.new("RGB", (90, 60), (120 + i, 128, 128))
        draw = ImageDraw.Draw(image)
        box = (10 + i % 20, 8 + i % 9, 50 + i % 20, 44 + i % 9)
        {"disc": draw.ellipse, "bar": draw.rectangle, "frame": draw.arc}[shape](
            box, **({"start": 0, "end": 300, "fill": colour, "width": 6} if shape == "frame" else {"fill": colour})
        )
        image.save(folder / f"{i}.png")
        rows.append({"file": f"{i}.png", "text": f"a {colour} {shape} number {i}"})
    (folder / "7.png").write_bytes(b"not an image")
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_folder_of_user_images(images: Path, tmp_path: Path) -> None:
    settings = [
        "ingest.source=folder", f"ingest.path={images}", "ingest.columns.image=file", "ingest.columns.caption=text",
        "ingest.holdout=0.2", "curate.score.model=none", "curate.max_cell_difference=null",
        "caption.task=caption", "caption.also=[]", "caption.replay=0", "deploy=null",
    ]  # fmt: skip
    done = vlmflow(tmp_path, "run", "recipes/mini.yaml", *[part for s in settings for part in ("--set", s)])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    results = json.loads((tmp_path / "latest" / "summary.json").read_text())["results"]
    assert set(results["skipped"]) == {"ground", "ocr", "preferences", "align", "deploy"}
    assert "no training conversation of task 'ground'" in results["skipped"]["ground"]
    assert results["rows"]["rows_in"] == 95
    assert "7.png" in (tmp_path / "latest" / "ingest" / "raw" / "quarantine.jsonl").read_text()
    assert "retrieval" in results["stages"]["align"] and "grounding" not in results["stages"]["align"]


def test_dvc_builds_the_data_once(tmp_path: Path) -> None:
    """In a clone with a small recipe: build twice, push, commit, and fetch the data of that commit."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy2(ROOT / name, clone / name)
    for layer in ("components", "models", "pipelines", "recipes", "vlmflow"):
        shutil.copytree(ROOT / layer, clone / layer, dirs_exist_ok=True)
    (clone / ".venv").symlink_to(Path(sys.executable).parent.parent)
    text = (clone / "dvc.yaml").read_text().replace("recipes/demo.yaml", "recipes/mini.yaml")
    (clone / "dvc.yaml").write_text(text)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(clone),
    }

    def dvc(*arguments: str) -> str:
        done = subprocess.run(["dvc", *arguments], cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    dvc("repro")
    assert (clone / "data" / "instructions" / "card.json").exists()
    assert dvc("repro").count("didn't change, skipping") == 6
    dvc("remote", "add", "-d", "shelf", str(tmp_path / "shelf"))
    assert "pushed" in dvc("push")
    # The data of a commit can be fetched from the remote, without the working tree and the cache.
    subprocess.run(["git", "add", "dvc.lock", "dvc.yaml", ".dvc"], cwd=clone, check=True)
    author = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *author, "commit", "-qm", "version the data"], cwd=clone, check=True)
    built = Dataset(clone / "data" / "instructions").hash
    shutil.rmtree(clone / "data")
    shutil.rmtree(clone / ".dvc" / "cache")
    names = ("raw", "curated", "ledger", "funnel", "conversations")
    commit = fetch(FetchConfig(repo=str(clone)), "HEAD", {name: tmp_path / name for name in names})
    fetched = Dataset(tmp_path / "conversations")
    assert (fetched.hash, fetched.card.revision) == (built, commit)
