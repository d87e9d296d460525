"""The section `sweep` of a recipe."""

import itertools
from typing import Any

from pydantic import Field, model_validator

from vlmflow.config.section import Section

LIMIT = 100


class SweepConfig(Section):
    """A grid over values of the section `pretrain`; each combination is one training."""

    grid: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict,
        description="Path within section `pretrain`, such as `training.learning_rate`, to the list of its values; "
        f"{LIMIT} combinations at most.",
    )

    @model_validator(mode="after")
    def _check_grid(self) -> "SweepConfig":
        if not self.grid or not all(self.grid.values()):
            raise ValueError("grid needs a path of section pretrain and its values: {training.learning_rate: [...]}")
        if (count := len(list(itertools.product(*self.grid.values())))) > LIMIT:
            raise ValueError(f"grid has {count} combinations, the limit is {LIMIT}; remove some values")
        return self
