"""The settings of a sweep: a grid over values of the recipe's section `pretrain`."""

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from vlmflow.config import recipes as recipes
from vlmflow.errors import RecipeError
from vlmflow.training.pretraining.config import PretrainConfig

LIMIT = 100


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What is varied: by its path in section `pretrain`, such as `training.learning_rate`, the values it takes.

    Every combination is one training.
    """

    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.grid or not all(self.grid.values()):
            raise ValueError("grid needs a path of section pretrain and its values: {training.learning_rate: [...]}")
        if (count := len(list(itertools.product(*self.grid.values())))) > LIMIT:
            raise ValueError(f"grid has {count} combinations, and {LIMIT} are the most; take some values out")


def settings(sweep: SweepConfig, recipe: str) -> list[str]:
    """Each combination as JSON, in the order of the grid, the last path varying fastest.

    Raises:
        RecipeError: one that section `pretrain` refuses, by name; before anything is trained.
    """
    found = [json.dumps(dict(zip(sweep.grid, point, strict=True))) for point in itertools.product(*sweep.grid.values())]
    for setting in found:
        try:
            recipes.load(PretrainConfig, recipes.changed(recipes.parse(recipe), "pretrain", setting), "pretrain")
        except RecipeError as error:
            raise RecipeError(f"sweep.grid: {setting}: {error}") from None
    return found
