"""The sections `caption`, `ground` and `ocr` of a recipe: supervised fine-tuning."""

from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from models.zoo import ZOO
from vlmflow.artifacts.dataset import Task
from vlmflow.config.nearest import nearest
from vlmflow.config.section import Section, check_keys
from vlmflow.training.augment_config import MildAugmentConfig
from vlmflow.training.config import TrainingConfig


class EarlyStoppingConfig(Section):
    """Stop when the loss on held-out images no longer falls, and keep the weights with the lowest loss.

    The images are held out of the training split, so the test split remains unseen.
    """

    every: int = Field(default=50, ge=1, description="Optimizer steps between measurements of the held-out loss.")
    patience: int = Field(default=3, ge=1, description="Measurements without a lower loss after which training stops.")
    holdout: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Fraction of the stage's images to hold out, at least one; an image is held out with all crops of "
        "it.",
    )


class FineTuneConfig(Section):
    """A stage of supervised fine-tuning."""

    task: Task = Field(description="Task that the stage trains.")
    also: tuple[Task, ...] = Field(default=(), description="Earlier tasks whose turns stay in the training data.")
    replay: float = Field(
        default=0.0, ge=0, lt=1, description="Fraction of the images drawn that have no turn of `task`; 0 draws none."
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="Budget and optimizer.")
    augment: MildAugmentConfig | None = Field(
        default_factory=MildAugmentConfig, description="Augmentation of images; boxes move along. Null is off."
    )
    early_stopping: EarlyStoppingConfig | None = Field(
        default=None, description="Stop by the loss on held-out training images; null trains for `training.max_steps`."
    )
    family: str = Field(
        default="",
        description="Family of the new language model, if the incoming model is a dual encoder; unused otherwise.",
    )
    model: dict[str, Any] = Field(
        default_factory=dict,
        description="Sizes of the new language model, by the parameters of the family's builder. The image size is "
        "that of the dual encoder (`pretrain.model.image_size`).",
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
        if self.early_stopping and self.training.save_every not in (None, self.early_stopping.every):
            raise ValueError(
                f"training.save_every {self.training.save_every}: with early_stopping a checkpoint is saved at every "
                f"measurement; remove it, or set it to early_stopping.every {self.early_stopping.every}"
            )
        return self
