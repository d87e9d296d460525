"""Monitoring the champion: no regression on images like its training data, a regression on mislabelled ones."""

import colorsys
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.champion.load import load_champion
from components.ingest.config import IngestConfig
from components.ingest.ingestion import ingest
from components.instructions.config import InstructionConfig
from components.instructions.conversations import build_conversations
from components.monitor.regression import compare_with_registration
from components.register.registration import register
from tests.conftest import vlmflow
from vlmflow.config import recipes as recipes
from vlmflow.errors import ModelError
from vlmflow.evaluation.config import EvaluateConfig, GateConfig
from vlmflow.evaluation.evaluate import evaluate
from vlmflow.runtime.code_hash import ROOT
from vlmflow.tracking.registry import RegistryConfig
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.training import pretrain

NAMES = ("red", "orange", "lime", "green", "cyan", "blue", "violet", "pink")  # hues 45 degrees apart
SETTINGS = [
    "ingest.source=folder",
    "ingest.columns.image=file",
    "ingest.columns.caption=text",
    "ingest.columns.label=label",
    "ingest.columns.split=split",
    "champion.name=colours",
    "validate_raw=null",
    "validate_curated=null",
]
SMALL = ["pretrain.model.image_size=32", "pretrain.training.max_steps=40", "pretrain.training.batch_size=32"]


def write_images(folder: Path, seed: int, swapped: float = 0.0) -> Path:
    """Noisy images of one colour with its name as label; a share `swapped` of the names is exchanged in pairs."""
    folder.mkdir()
    random, rows = np.random.default_rng(seed), []
    for i in range(200):
        colour = 255 * np.array(colorsys.hsv_to_rgb(i % 8 / 8, 0.9, 0.8))
        noise = random.normal(0, 12, (32, 32, 3))
        Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        name = NAMES[i % 8 ^ (i % 8 < 8 * swapped)]
        split = "test" if i >= 120 else "train"
        rows.append({"file": f"{i}.png", "text": f"a {name} square", "label": name, "split": split})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def prepare(folder: Path, out: Path) -> tuple[Path, Path]:
    """The folder's pairs and their conversations."""
    sections = recipes.override({}, [*SETTINGS, f"ingest.path={folder}"])
    ingest(recipes.load(IngestConfig, sections, "ingest"), out / "pairs")
    build_conversations(out / "pairs", out / "instructions", InstructionConfig())
    return out / "pairs", out / "instructions"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose registry has a champion that classifies eight colours."""
    home = tmp_path_factory.mktemp("home")
    sections = recipes.override(recipes.parse(str(ROOT / "recipes" / "zoo" / "clip.yaml")), SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMFLOW_HOME", str(home))
        for name in ("MLFLOW_TRACKING_URI", "VLMFLOW_TRACKING"):
            patch.delenv(name, raising=False)
        pairs, questions = prepare(write_images(home / "then", 0), home / "data")
        section = recipes.load(PretrainConfig, sections, "pretrain")
        pretrain(pairs=pairs, conversations=questions, out=home / "model", section=section)
        data = {"pairs": pairs, "conversations": questions}
        found = evaluate(model=home / "model", **data, out=home / "scores", stage="pretrain", section=EvaluateConfig())
        assert found["capabilities"]["zero-shot"]["value"] > 0.9, "a regression must be possible"
        (home / "verdict").mkdir()
        (home / "verdict" / "verdict.json").write_text('{"against": null, "promoted": true, "reasons": []}')
        model, scores, verdict, version = (home / name for name in ("model", "scores", "verdict", "version"))
        register(model, scores, verdict, version, "seed: 0\n", RegistryConfig(name="colours"))
        yield home


def test_no_regression_on_images_like_the_training_data(home: Path, tmp_path: Path) -> None:
    pairs, questions = prepare(write_images(tmp_path / "fresh", 1), tmp_path / "data")
    load_champion("colours", tmp_path / "model", tmp_path / "registered", tmp_path / "version")
    data = {"pairs": pairs, "conversations": questions}
    evaluate(model=tmp_path / "model", **data, out=tmp_path / "scores", stage="champion", section=EvaluateConfig())
    places = {"now": tmp_path / "scores", "registered": tmp_path / "registered", "version": tmp_path / "version"}
    found = compare_with_registration(
        **places, finding=tmp_path / "finding", page=tmp_path / "page", section=GateConfig()
    )
    assert found["version"] == "models:/colours/1" and found["regressions"] == [] and found["left_out"] == {}
    assert {comparison["capability"] for comparison in found["capabilities"]} == {"retrieval", "zero-shot"}


def test_a_regression_fails_the_run_and_is_named(home: Path) -> None:
    settings = [*SETTINGS, f"ingest.path={write_images(home / 'turned', 2, swapped=0.5)}"]
    done = vlmflow(home, "run", "recipes/monitor.yaml", *[part for each in settings for part in ("--set", each)])
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: monitor: models:/colours/1 got worse: ") and "zero-shot: " in line
    assert "Traceback" not in done.stderr
    (record,) = (home / "latest" / "steps").glob("monitor.json")
    assert json.loads(record.read_text())["status"] == "failed"


def test_a_registry_without_a_champion_is_an_error(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"models:/nobody@champion: .*models:/colours/1 \(champion\)"):
        load_champion("nobody", *[tmp_path / name for name in ("model", "scores", "version")])
