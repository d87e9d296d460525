"""The section `learning_check` of a recipe."""

from pydantic import Field

from vlmflow.config.section import Section


class LearningCheckConfig(Section):
    """The comparison of a trained model with its untrained self and with the control."""

    confidence: float = Field(default=0.95, gt=0, lt=1, description="Confidence of the bootstrap intervals.")
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples of each interval.")
    figure_rows: int = Field(default=6, ge=1, description="Rows of examples in the figure.")
    seed: int = Field(default=0, description="Seed of the bootstrap; the recipe's seed by default.")
