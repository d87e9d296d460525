"""A sweep trains every combination on the same pairs, labels it, and compares them."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.sweep.config import SweepConfig
from components.sweep.grid import grid_points
from tests.conftest import vlmflow
from vlmflow.config import recipes as recipes
from vlmflow.errors import RecipeError
from vlmflow.runtime.code_hash import ROOT

SMALL = [
    "--set", "ingest.scenes={web: 200, boxes: 0, signs: 0, test: 40}", "--set", "evaluate.limit=20",
    "--set", "pretrain.training.max_steps=2", "--set", "pretrain.training.batch_size=16",
    "--set", "pretrain.model.vision_hidden_size=32",
]  # fmt: skip


def recipe(**grid: list) -> str:
    sections = recipes.parse(str(ROOT / "recipes" / "sweep.yaml"))
    return recipes.dump({**sections, "sweep": {"grid": {name.replace("__", "."): grid[name] for name in grid}}})


def listed(text: str) -> list[dict]:
    return [json.loads(one) for one in grid_points(recipes.load(SweepConfig, text, "sweep"), text)]


def test_a_grid_contains_every_combination() -> None:
    assert listed(recipe(training__learning_rate=[1e-3, "2e-3"], model__vision_hidden_size=[32, 64])) == [
        {"model.vision_hidden_size": width, "training.learning_rate": rate}
        for width in (32, 64)
        for rate in (1e-3, "2e-3")
    ]


def test_the_shipped_grid_is_valid() -> None:
    assert len(listed((ROOT / "recipes" / "sweep.yaml").read_text(encoding="utf-8"))) == 6


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "grid needs a path"),
        ({"ema": []}, "grid needs a path"),
        ({"ema": [0.5, 2]}, r'sweep.grid: \{"ema": 2\}: pretrain.ema: must be above 0 and below 1'),
        ({"training__learning_rat": [1]}, "learning_rat: no such key"),
        ({"negatives": list(range(101))}, "101 combinations"),
    ],
)
def test_a_sweep_with_an_invalid_combination_is_rejected(grid: dict[str, list], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        listed(recipe(**grid))


def test_settings_are_trained_side_by_side_and_compared(tmp_path: Path) -> None:
    asked = ["run", "recipes/sweep.yaml", *SMALL, "--set", "sweep.grid={training.learning_rate: [1.0e-3, 3.0e-3]}"]
    done = vlmflow(tmp_path, *asked)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    names = [f"training.learning_rate={rate}" for rate in ("0.001", "0.003")]
    folder = (tmp_path / "latest").resolve()
    stages = json.loads((folder / "summary.json").read_text())["results"]["stages"]
    assert list(stages) == names and all("retrieval" in found for found in stages.values())
    assert all(f"✓ evaluate-{name}" in done.stdout and f"│ {name} " in done.stdout for name in names)

    weights = {(folder / f"pretrain-{name}/model/model.safetensors").read_bytes() for name in names}
    assert len(weights) == 2, "each was trained with its own value"
    store = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [experiment] = [e for e in store.search_experiments() if e.name == "vlmflow"]
    runs = store.search_runs([experiment.experiment_id], "tags.`vlmflow.step` = 'pretrain'")
    assert {run.data.params["pretrain.training.learning_rate"] for run in runs} == {"0.001", "0.003"}

    again = vlmflow(tmp_path, *asked)
    assert all(f"✓ pretrain-{name} (unchanged)" in again.stdout for name in names)
