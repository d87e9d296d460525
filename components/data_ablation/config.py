"""The section `data_ablation` of a recipe."""

from pydantic import Field

from vlmflow.config.section import Section


class DataAblationConfig(Section):
    """The comparison of models trained on the data after each stage of curation."""

    capabilities: tuple[str, ...] = Field(
        default=("retrieval", "zero-shot"), min_length=1, description="Capabilities of the dual encoder to compare."
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Confidence of the bootstrap intervals.")
    seed: int = Field(default=0, description="Seed of the bootstrap; the recipe's seed by default.")
