"""The champion is looked at again: on pictures as it learned them all is well, on others it fell, and is named."""

import colorsys
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.champion.load import load_champion
from components.ingest.ingestion import IngestConfig, ingest
from components.instructions.conversations import InstructionConfig, make
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

NAMES = ("red", "orange", "lime", "green", "cyan", "blue", "violet", "pink")  # an eighth of the circle apart
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


def pictures(folder: Path, seed: int, turned: float = 0.0) -> Path:
    """Noisy pictures of one colour, each with its name; a share `turned` of the colours bear each other's, in pairs."""
    folder.mkdir()
    random, rows = np.random.default_rng(seed), []
    for i in range(200):
        colour = 255 * np.array(colorsys.hsv_to_rgb(i % 8 / 8, 0.9, 0.8))
        noise = random.normal(0, 12, (32, 32, 3))
        Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        said = NAMES[i % 8 ^ (i % 8 < 8 * turned)]
        split = "test" if i >= 120 else "train"
        rows.append({"file": f"{i}.png", "text": f"a {said} square", "label": said, "split": split})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def prepared(folder: Path, out: Path) -> tuple[Path, Path]:
    """The folder's pairs and their task sets."""
    sections = recipes.override({}, [*SETTINGS, f"ingest.path={folder}"])
    ingest(recipes.load(IngestConfig, sections, "ingest"), out / "pairs")
    make(out / "pairs", out / "instructions", InstructionConfig())
    return out / "pairs", out / "instructions"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose registry has a champion that tells eight colours apart."""
    home = tmp_path_factory.mktemp("home")
    sections = recipes.override(recipes.parse(str(ROOT / "recipes" / "zoo" / "clip.yaml")), SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMFLOW_HOME", str(home))
        for name in ("MLFLOW_TRACKING_URI", "VLMFLOW_TRACKING"):
            patch.delenv(name, raising=False)
        pairs, questions = prepared(pictures(home / "then", 0), home / "data")
        section = recipes.load(PretrainConfig, sections, "pretrain")
        pretrain(pairs=pairs, conversations=questions, out=home / "model", section=section)
        data = {"pairs": pairs, "conversations": questions}
        found = evaluate(model=home / "model", **data, out=home / "scores", stage="pretrain", section=EvaluateConfig())
        assert found["capabilities"]["zero-shot"]["value"] > 0.9, "else it could not fall"
        (home / "verdict").mkdir()
        (home / "verdict" / "verdict.json").write_text('{"against": null, "promoted": true, "reasons": []}')
        model, scores, verdict, version = (home / name for name in ("model", "scores", "verdict", "version"))
        register(model, scores, verdict, version, "seed: 0\n", RegistryConfig(name="colours"))
        yield home


def test_all_is_well_on_pictures_as_it_learned_them(home: Path, tmp_path: Path) -> None:
    pairs, questions = prepared(pictures(tmp_path / "fresh", 1), tmp_path / "data")
    load_champion("colours", tmp_path / "model", tmp_path / "registered", tmp_path / "version")
    data = {"pairs": pairs, "conversations": questions}
    evaluate(model=tmp_path / "model", **data, out=tmp_path / "scores", stage="champion", section=EvaluateConfig())
    places = {"now": tmp_path / "scores", "registered": tmp_path / "registered", "version": tmp_path / "version"}
    found = compare_with_registration(
        **places, finding=tmp_path / "finding", page=tmp_path / "page", section=GateConfig()
    )
    assert found["version"] == "models:/colours/1" and found["fallen"] == [] and found["left_out"] == {}
    assert {comparison["capability"] for comparison in found["capabilities"]} == {"retrieval", "zero-shot"}


def test_it_is_seen_to_fall_and_what_fell_is_named(home: Path) -> None:
    settings = [*SETTINGS, f"ingest.path={pictures(home / 'turned', 2, turned=0.5)}"]
    done = vlmflow(home, "run", "recipes/monitor.yaml", *[part for each in settings for part in ("--set", each)])
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: monitor: models:/colours/1 fell: ") and "zero-shot: " in line
    assert "Traceback" not in done.stderr
    (record,) = (home / "latest" / "steps").glob("monitor.json")
    assert json.loads(record.read_text())["status"] == "failed"


def test_a_registry_without_a_champion(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"models:/nobody@champion: .*models:/colours/1 \(champion\)"):
        load_champion("nobody", *[tmp_path / name for name in ("model", "scores", "version")])
