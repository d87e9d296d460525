"""The section `preferences` of a recipe."""

from pydantic import Field

from vlmflow.config.section import Section


class PreferenceConfig(Section):
    """How many images the model is asked about, and how its answers are sampled."""

    images: int = Field(default=1000, ge=1, description="Training images whose objects the model lists, at most.")
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature of the answers.")
    max_new_tokens: int = Field(default=48, ge=1, description="Tokens of an answer, at most.")
    seed: int = Field(
        default=0, description="Seed of the choice of images and of the sampling; the recipe's seed by default."
    )
