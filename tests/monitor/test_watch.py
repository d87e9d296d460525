"""The champion is looked at again: on pictures as it learned them all is well, on others it fell, and is named."""

import colorsys
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import vlmflow

NAMES = ("red", "orange", "lime", "green", "cyan", "blue", "violet", "pink")  # an eighth of the circle apart
SMALL = {
    "ingest.source": "folder",
    "ingest.columns.image": "file",
    "ingest.columns.caption": "text",
    "ingest.columns.label": "label",
    "ingest.columns.split": "split",
    "register.name": "colours",
    "champion.name": "colours",
}


def pictures(folder: Path, seed: int, turned: float = 0.0) -> Path:
    """Noisy pictures of one colour, each with its name; `turned` of them bear the name of the next one."""
    folder.mkdir()
    random, rows = np.random.default_rng(seed), []
    for i in range(240):
        colour = 255 * np.array(colorsys.hsv_to_rgb(i % 8 / 8, 0.9, 0.8))
        noise = random.normal(0, 12, (32, 32, 3))
        Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        said = NAMES[(i + (i % 8 < 8 * turned)) % 8]
        split = "test" if i >= 160 else "train"
        rows.append({"file": f"{i}.png", "text": f"a {said} square", "label": said, "split": split})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(home: Path, recipe: str, folder: Path, *more: str):
    settings = [f"{key}={value}" for key, value in SMALL.items()] + [f"ingest.path={folder}", *more]
    return vlmflow(home, "run", recipe, *[part for setting in settings for part in ("--set", setting)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose registry has a champion that tells eight colours apart."""
    home = tmp_path_factory.mktemp("home")
    done = run(
        home, "recipes/zoo/clip.yaml", pictures(home / "then", 0), "deploy=null", "evaluate.held_out_loss=false",
        "pretrain.model.image_size=32", "pretrain.training.max_steps=40", "pretrain.training.batch_size=32",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    scores = json.loads((home / "latest" / "summary.json").read_text())["results"]["stages"]["pretrain"]
    assert scores["zero-shot"]["value"] > 0.9, "else it could not fall"
    return home


def test_all_is_well_on_pictures_as_it_learned_them(home: Path) -> None:
    done = run(home, "recipes/watch.yaml", pictures(home / "fresh", 1))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "models:/colours/1 does what it did" in done.stdout


def test_it_is_seen_to_fall_and_what_fell_is_named(home: Path) -> None:
    done = run(home, "recipes/watch.yaml", pictures(home / "turned", 2, turned=0.5))
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: monitor: models:/colours/1 fell: ") and "zero-shot: " in line
    assert "Traceback" not in done.stderr
    assert (home / "latest" / "monitor" / "page").read_text().startswith("**models:/colours/1 fell: ")
