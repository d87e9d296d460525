"""The sections `validate_raw`, `validate_curated`, `validate_instructions` and `validate_preferences` of a recipe."""

from pydantic import Field

from vlmflow.config.section import Section


class ValidateConfig(Section):
    """How strictly a dataset is checked."""

    strict: bool = Field(
        default=False,
        description="Make critical what curation removes: unreadable images, repeated pairs, pairs without content.",
    )
    min_rows: int = Field(default=1, ge=0, description="Rows that the dataset must have.")
    max_text: int = Field(
        default=8192, ge=1, description="Characters of a caption or conversation above which a warning is given."
    )
    decode: int | None = Field(
        default=500,
        ge=0,
        description="Images to decode in full, chosen by content, about this many; images that look truncated are "
        "always decoded, and the header of every image is read. Null decodes all.",
    )
    decontaminate: tuple[str, ...] = Field(
        default=(),
        description="Evaluation sets (datasets, or folders of images); a training row with one of their images is "
        "critical. Empty skips the check.",
    )
