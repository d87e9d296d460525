"""The sections `evaluate`, and `gate` and `monitor`, of a recipe."""

from pydantic import Field, field_validator

from vlmflow.config.section import Section
from vlmflow.inference.prompts import CLASS_TEMPLATES

CONTROLS = ("blank", "shuffled")


class EvaluateConfig(Section):
    """How many held-out examples each capability is measured on. An interval needs at least two examples."""

    limit: int = Field(
        default=500,
        ge=2,
        description="Captioned and labelled test images for each capability, at most; of more a sample is scored, and "
        "the tables say so.",
    )
    questions: int = Field(
        default=300,
        ge=2,
        description="Test questions of each task, at most; of more a sample is scored, and the tables say so.",
    )
    max_new_tokens: int = Field(
        default=40, ge=1, description="Tokens of an answer, at most; longer true answers are counted in a warning."
    )
    class_templates: tuple[str, ...] = Field(
        default=CLASS_TEMPLATES,
        min_length=1,
        description="Texts with `{}` for the name of a class in zero-shot classification; their mean is the class.",
    )
    control_questions: int = Field(
        default=100,
        ge=2,
        description="Examples of each capability for the controls with blank and shuffled images, at most.",
    )
    resamples: int = Field(default=1000, ge=1, description="Bootstrap resamples of each interval.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Confidence of the bootstrap intervals.")
    samples: int = Field(default=6, ge=0, description="Answers of each capability kept for the report.")
    held_out_loss: bool = Field(
        default=False, description="Also measure the family's own training objective on test pairs."
    )
    loss_batch: int = Field(default=32, ge=1, description="Pairs in a batch of the held-out loss.")
    processes: int = Field(
        default=1, ge=1, description="Processes that share the capabilities; does not change the values."
    )
    seed: int = Field(
        default=0, description="Seed of the choice of examples and bootstrap; the recipe's seed by default."
    )

    @field_validator("class_templates")
    @classmethod
    def _check_templates(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.replace("{}", "", 1) == template or set(template.replace("{}", "", 1)) & set("{}"):
                raise ValueError(f"a template must contain {{}} once, for the name of the class, got {template!r}")
        return templates


class GateConfig(Section):
    """How a model is compared with the one before it, and what it must not lose."""

    protected: tuple[str, ...] = Field(
        default=(), description="Capabilities that must not become worse; empty means all."
    )
    beat_controls: bool = Field(
        default=True,
        description="Promote a model, the first included, only if each protected capability is better than with blank "
        "and with shuffled images, by more than the intervals. Fill-mask, hallucination and held-out loss are not "
        "judged: a model can do well on them without the image. False also promotes a model that does not use its "
        "images: a text-only family, or a test of the pipeline.",
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Confidence of the bootstrap intervals.")
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples of each interval.")
    tolerance: float = Field(default=0.0, ge=0, description="Accepted loss of mean score.")
    min_examples: int = Field(
        default=10,
        ge=2,
        description="A capability with fewer examples is reported as unsure: it neither refuses a model nor proves "
        "that it beats its controls.",
    )
    seed: int = Field(default=0, description="Seed of the bootstrap; the recipe's seed by default.")
