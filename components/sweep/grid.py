"""The settings of a sweep: a grid over values of the section `pretrain`."""

import itertools
import json

from components.sweep.config import SweepConfig
from vlmflow.config import recipes as recipes
from vlmflow.errors import RecipeError
from vlmflow.training.pretraining.config import PretrainConfig


def grid_points(config: SweepConfig, recipe: str) -> list[str]:
    """Return each combination as JSON, in the order of the grid; the last path varies fastest.

    Raises:
        RecipeError: a combination is invalid in section `pretrain`; this is checked before any training.
    """
    settings = [
        json.dumps(dict(zip(config.grid, point, strict=True))) for point in itertools.product(*config.grid.values())
    ]
    for setting in settings:
        try:
            recipes.load(PretrainConfig, recipes.changed(recipes.parse(recipe), "pretrain", setting), "pretrain")
        except RecipeError as error:
            raise RecipeError(f"sweep.grid: {setting}: {error}") from None
    return settings
