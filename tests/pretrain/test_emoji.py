"""Compositional names: a model retrieves the names of a kind of emoji that is absent from training."""

from pathlib import Path

import pytest

from benchmarks.emoji import RECIPE, index, recall, train
from tests.conftest import SHARED
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes

EMOJI = SHARED / "data" / "emoji"


@pytest.mark.skipif(not EMOJI.is_dir(), reason="the emoji dataset is not available")
@pytest.mark.soak
def test_a_model_trained_without_women_retrieves_their_names(tmp_path: Path) -> None:
    """Use a part of the recipe's budget, in one process; `python -m benchmarks.emoji` runs all of it."""
    names = [row["caption"] for row in index(EMOJI, tmp_path, "woman")]
    short = {"seconds": "null", "max_steps": 120, "batch_size": 64, "processes": 1}
    changes = [f"pretrain.training.{name}={value}" for name, value in short.items()]
    pairs, model = train(tmp_path, recipes.override(recipes.parse(RECIPE), changes))
    captions = Dataset(pairs).table(["caption", "split"]).to_pylist()
    assert not any(row["caption"].split()[0] == "woman" for row in captions if row["split"] == "train")
    assert sum(row["split"] == "test" for row in captions) == 75
    result = recall(model, pairs, names)
    chance = 10 / len(names)
    assert len(names) == 1609 and result["images"] == 75
    assert result["low"] > 3 * chance, result
