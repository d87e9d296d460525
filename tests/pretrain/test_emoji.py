"""Names put together from their parts: emoji of a kind that training never saw, found among all names."""

from pathlib import Path

import pytest

from benchmarks.emoji import RECIPE, index, learn, recall
from tests.conftest import SHARED
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes

EMOJI = SHARED / "data" / "emoji"


@pytest.mark.skipif(not EMOJI.is_dir(), reason="the emoji are not here")
def test_the_names_of_women_are_found_by_a_model_that_saw_none(tmp_path: Path) -> None:
    """A part of the recipe's budget, in one process; the whole of it is for `python -m benchmarks.emoji`."""
    names = [row["caption"] for row in index(EMOJI, tmp_path, "woman")]
    short = {"seconds": "null", "max_steps": 120, "batch_size": 64, "processes": 1}
    changes = [f"pretrain.training.{name}={value}" for name, value in short.items()]
    pairs, model = learn(tmp_path, recipes.override(recipes.parse(RECIPE), changes))
    captions = Dataset(pairs).table(["caption", "split"]).to_pylist()
    assert not any(row["caption"].split()[0] == "woman" for row in captions if row["split"] == "train")
    assert sum(row["split"] == "test" for row in captions) == 75
    found = recall(model, pairs, names)
    chance = 10 / len(names)
    assert len(names) == 1609 and found["pictures"] == 75
    assert found["low"] > 3 * chance, found
