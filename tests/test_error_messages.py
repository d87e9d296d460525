"""A user error gives one line that names the key and the value, exit code 2, and no partial output."""

import json
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import vlmflow
from vlmflow.artifacts import dataset
from vlmflow.runtime.code_hash import ROOT


def assert_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The exit code is 2, the last line contains all `parts`, and there is no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    for part in parts:
        assert part in line, line


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rows = []
    for i in range(4):
        Image.new("RGB", (40, 30), (40 * i, 90, 200)).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "txt": f"image number {i}"})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def ingest(tmp_path: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    given = [part for setting in ("ingest.source=folder", *settings) for part in ("--set", setting)]
    out = tmp_path / "out" / "raw"
    done = vlmflow(tmp_path / "home", "step", "ingest", "--recipe", "recipes/mini.yaml", "--out", f"raw={out}", *given)
    if done.returncode:
        assert not out.exists() and not list(out.parent.glob(".*")), "a partial output was left"
    return done


def test_a_missing_recipe(tmp_path: Path) -> None:
    assert_error(vlmflow(tmp_path, "run", "recipes/dmeo.yaml", process=False), "recipes/dmeo.yaml", "no such recipe")


def test_an_unknown_key(tmp_path: Path) -> None:
    done = vlmflow(tmp_path, "run", "recipes/mini.yaml", "--set", "curate.min_sidd=3", process=False)
    assert_error(done, "curate.min_sidd", "3", "'min_side'")
    assert not list(tmp_path.iterdir()), "a step ran"


def test_a_value_of_the_wrong_type(tmp_path: Path) -> None:
    assert_error(
        vlmflow(tmp_path, "run", "recipes/mini.yaml", "--set", "ocr.training.max_steps=many", process=False),
        "max_steps",
        "'many'",
    )


def test_a_missing_folder(tmp_path: Path) -> None:
    assert_error(ingest(tmp_path, f"ingest.path={tmp_path / 'nowhere'}"), "nowhere")


def test_a_missing_caption_column(images: Path, tmp_path: Path) -> None:
    assert_error(ingest(tmp_path, f"ingest.path={images}"), "caption", "txt")


def test_an_empty_dataset(images: Path, tmp_path: Path) -> None:
    (images / "list.jsonl").write_text("")
    assert_error(ingest(tmp_path, f"ingest.path={images}"), "images", "no rows")


def test_a_box_outside_its_image_is_quarantined_with_the_reason(images: Path, tmp_path: Path) -> None:
    row = {
        "image": "0.png",
        "txt": "x",
        "boxes": [{"label": "in", "box": [1, 1, 9, 9]}, {"label": "out", "box": [90, 1, 99, 9]}],
    }
    (images / "list.jsonl").write_text(json.dumps(row) + "\n")
    done = ingest(tmp_path, f"ingest.path={images}", "ingest.columns.caption=txt", "ingest.columns.boxes=boxes")
    assert done.returncode == 0, done.stderr
    rows = list(dataset.Dataset(tmp_path / "out" / "raw").rows())
    assert [region["phrase"] for region in rows[0]["regions"]] == ["in"]
    assert "out" in (tmp_path / "out" / "raw" / "quarantine.jsonl").read_text()


def test_a_missing_input(tmp_path: Path) -> None:
    done = vlmflow(
        tmp_path,
        "step",
        "instructions",
        "--recipe",
        "recipes/mini.yaml",
        "--in",
        "pairs=missing",
        "--out",
        f"conversations={tmp_path / 'x'}",
    )
    assert_error(done, "pairs=missing", "file not found")


def test_an_unknown_step(tmp_path: Path) -> None:
    assert_error(vlmflow(tmp_path, "step", "ingset", "--recipe", "recipes/mini.yaml"), "ingset", "'ingest'")


def test_a_full_disk(tmp_path: Path) -> None:
    """A file-size limit simulates a full disk: the write fails in the middle of a shard."""
    out = tmp_path / "out" / "raw"
    command = [str(Path(sys.executable).parent / "vlmflow"), "step", "ingest", "--recipe", "recipes/mini.yaml"]
    done = subprocess.run(
        [*command, "--out", f"raw={out}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert_error(done, "cannot write")
    assert not out.exists() and not list(out.parent.iterdir())


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = vlmflow(tmp_path / "file", "run", "recipes/mini.yaml")
    assert_error(done, str(tmp_path / "file"), "cannot be written", "VLMFLOW_HOME")


def test_too_little_data_is_reported_from_a_worker_process(tmp_path: Path) -> None:
    """The error is raised inside a process group and reported as one line."""
    rows = [
        {"uid": f"{i}", "image": b"", "caption": "a", "width": 1, "height": 1, "source": "", "licence": "",
         "split": "train", "label": "", "regions": [], "lines": []}
        for i in range(3)
    ]  # fmt: skip
    dataset.write(tmp_path / "pairs", "pairs", rows)
    dataset.write(tmp_path / "conversations", "conversations", [])
    done = vlmflow(
        tmp_path, "step", "pretrain", "--recipe", "recipes/mini.yaml", "--param", "section=pretrain",
        "--in", f"pairs={tmp_path / 'pairs'}", "--in", f"conversations={tmp_path / 'conversations'}",
        "--out", f"model={tmp_path / 'model'}", "--set", "pretrain.training.processes=2", process=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert (
        done.stderr.strip().splitlines()[-1].startswith("error: ")
        and "3 training pairs" in done.stderr.splitlines()[-1]
    )
    assert not (tmp_path / "model").exists()


def test_a_wrong_model_reference(tmp_path: Path) -> None:
    assert_error(vlmflow(tmp_path, "serve", "models:/vlm@unknown", "--port", "0", process=False), "models:/vlm@unknown")
    assert_error(vlmflow(tmp_path, "serve", str(tmp_path / "nothing"), "--port", "0", process=False), "nothing")


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        assert_error(vlmflow(tmp_path, "serve", "models:/vlm@champion", "--port", port, process=False), port, "--port")
        assert_error(vlmflow(tmp_path, "ui", "--port", port, process=False), port)


def test_an_unreachable_mlflow_server(tmp_path: Path) -> None:
    done = vlmflow(tmp_path, "run", "recipes/mini.yaml", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert_error(done, "http://127.0.0.1:9", "MLFLOW_TRACKING_URI")
    assert not list(tmp_path.glob("*/steps/*")), "a step ran"
