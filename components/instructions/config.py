"""The section `instructions` of a recipe."""

from pydantic import Field

from vlmflow.config.section import Section


class InstructionConfig(Section):
    """Which questions each image gets, and how many."""

    regions: int = Field(
        default=4,
        ge=0,
        description="Regions to locate for each image, at most, chosen at random; a phrase that several regions of the "
        "image have is not asked.",
    )
    yes_no: int = Field(default=2, ge=0, description="Yes-or-no questions for each image, at most.")
    lines: int = Field(
        default=64, ge=0, description="Lines of text to read for each image, at most: the first ones. 0 asks for none."
    )
    labels: bool = Field(
        default=False, description="Ask for the label of each labelled image (`Classify the picture.`)."
    )
    statements: bool = Field(
        default=False,
        description="The caption is a statement, and the label says whether it is true: ask `… True or false?` instead "
        "of for a description.",
    )
    seed: int = Field(default=0, description="Seed of the choice of regions and objects; the recipe's seed by default.")
