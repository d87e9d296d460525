"""The section `report` of a recipe."""

from pydantic import Field

from vlmflow.config.section import Section


class ReportConfig(Section):
    """How many examples the report shows."""

    pairs: int = Field(default=12, ge=0, description="Kept pairs and dropped pairs to show, of each at most.")
    preferences: int = Field(default=4, ge=0, description="Preference pairs to show, at most.")
    seed: int = Field(default=0, description="Seed of the choice of examples; the recipe's seed by default.")
