"""Checkpoints to serve, and the inputs of the step `deploy`."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from components.deploy.config import DeployConfig
from components.deploy.runtimes import serving_runtime
from models.tiny.build import build_language_model
from tests.deploy.fake_kube_api import Node
from vlmflow.artifacts import dataset
from vlmflow.artifacts.checkpoint import Checkpoint, save


@pytest.fixture(scope="package")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two checkpoints, `one` and `two`, and an empty folder, `none`."""
    folder = tmp_path_factory.mktemp("volumes")
    for name in ("one", "two"):
        built = build_language_model(["a red circle"] * 20, vision_layers=1, text_layers=1, num_hidden_layers=1)
        save(folder / name, *built, family="tiny-vlm", step="align")
    (folder / "none").mkdir()
    return folder


@pytest.fixture(scope="package")
def model(volumes: Path) -> Path:
    """The checkpoint `one`."""
    return volumes / "one"


@pytest.fixture(scope="package")
def node(volumes: Path) -> Iterator[Node]:
    """The node on which the tests' predictors run. They are started once, so that no test waits for torch."""
    runtime = serving_runtime(DeployConfig(), "img:1")
    assert runtime is not None
    container = json.loads(json.dumps(runtime["spec"]["containers"][0]).replace("{{.Name}}", "vlm"))
    node = Node(volumes)
    started = [node.run(container, f"pvc://{name}") for name in ("one", "two", "none")]
    deadline = time.monotonic() + 300
    while not all(process.ready() or process.ended for process in started):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield node
    node.stop()


def png() -> bytes:
    """Return an encoded image."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "green").save(buffer, "PNG")
    return buffer.getvalue()


def pairs(folder: Path, split: str) -> Path:
    """Write a pairs dataset with one row in `split`."""
    empty = {"regions": [], "lines": [], "label": "", "source": "test", "licence": "none"}
    row = {"uid": dataset.uid(png(), "x"), "image": png(), "caption": "x", **empty}
    return dataset.write(folder, "pairs", [{**row, "width": 64, "height": 48, "split": split}]).path


def version(folder: Path, model: Path, number: str = "1", alias: str = "champion") -> Path:
    """Write the `version.json` that `register` would write for a checkpoint. Returns its folder."""
    content = {"name": "vlm", "version": number, "uri": f"models:/vlm/{number}", "alias": alias, "run_id": "r1"}
    folder.mkdir(parents=True, exist_ok=True)
    model_hash = Checkpoint(model).hash if (model / "config.json").exists() else "0" * 64
    (folder / "version.json").write_text(json.dumps({**content, "model_hash": model_hash}))
    return folder
