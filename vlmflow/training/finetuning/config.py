"""The sections `caption`, `ground` and `ocr` of a recipe: supervised fine-tuning."""

from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from models.zoo import ZOO
from vlmflow.config.nearest import nearest
from vlmflow.config.section import Section, check_keys
from vlmflow.training.config import TrainingConfig


class FineTuneConfig(Section):
    """A stage of supervised fine-tuning."""

    task: str = Field(description="Task that the stage trains: caption, objects, vqa, ground or ocr.")
    also: tuple[str, ...] = Field(default=(), description="Earlier tasks whose turns stay in the training data.")
    replay: float = Field(
        default=0.0, ge=0, lt=1, description="Fraction of the images drawn that have no turn of `task`; 0 draws none."
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="Budget and optimizer.")
    family: str = Field(
        default="",
        description="Family of the new language model, if the incoming model is a dual encoder; unused otherwise.",
    )
    model: dict[str, Any] = Field(
        default_factory=dict, description="Sizes of the new language model, by the parameters of the family's builder."
    )

    @field_validator("family")
    @classmethod
    def _check_family(cls, family: str) -> str:
        known = [name for name, row in ZOO.items() if "chat" in row.abilities]
        if family and family not in known:
            raise ValueError(f"{family!r} is none of {', '.join(known)}; {nearest(family, known)}")
        return family

    @field_validator("model")
    @classmethod
    def _check_size_names(cls, sizes: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if sizes and info.data.get("family"):
            check_keys(sizes, ZOO[info.data["family"]].from_dual_encoder_sizes)
        return sizes

    @model_validator(mode="after")
    def _check_training(self) -> "FineTuneConfig":
        self.training.forbid_seconds()
        return self
