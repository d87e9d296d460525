"""The section `instructions` of a recipe."""

from pydantic import Field

from vlmflow.config.section import Section


class InstructionConfig(Section):
    """How many questions each image gets."""

    regions: int = Field(default=4, ge=0, description="Regions to locate for each image, at most.")
    yes_no: int = Field(default=2, ge=0, description="Yes-or-no questions for each image, at most.")
    lines: int = Field(default=64, ge=0, description="Lines of text to read for each image, at most.")
    seed: int = Field(default=0, description="Seed of the choice of regions and objects; the recipe's seed by default.")
