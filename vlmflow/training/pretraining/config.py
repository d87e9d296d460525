"""The section `pretrain` of a recipe, and its variants `untrained`, `trained` and `shuffled` for the learning check."""

from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from models.zoo import ZOO
from vlmflow.config.nearest import nearest
from vlmflow.config.section import Section, check_keys
from vlmflow.training.augment_config import AugmentConfig, ViewConfig
from vlmflow.training.config import TrainingConfig


class PretrainConfig(Section):
    """The family to pretrain, its sizes and its budget; everything after `shuffle_pairs` is off by default.

    Captions are cut to the length of the text tower, at most 64 tokens; a warning counts those that are longer. The
    vocabulary of a new model has the 4,000 most frequent words that occur three times; other words are spelled.
    """

    family: str = Field(default="tiny-dual-encoder", description="Family of the zoo (docs/zoo.md).")
    init_from: str | None = Field(
        default=None,
        description="Pretrained weights to continue from: a folder or a name on the Hugging Face Hub. Null starts from "
        "a new model.",
    )
    model: dict[str, Any] = Field(
        default_factory=dict,
        description="Sizes of a new model, by the parameters of the family's builder; empty uses the builder's "
        "defaults, the sizes of the paper.",
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="Budget and optimizer.")
    shuffle_pairs: bool = Field(
        default=False,
        description="Train the control: pair images and captions at random, so that nothing can be learned.",
    )
    augment: AugmentConfig | None = Field(default=None, description="Augmentation of images; null is off.")
    views: ViewConfig | None = Field(
        default=None,
        description="Augmentation of the two views that SLIP compares; null uses the defaults of the views.",
    )
    negatives: int = Field(default=0, ge=0, description="Hard-negative captions for each caption (NegCLIP); 0 is off.")
    hard_negative_fraction: float = Field(
        default=0.0, ge=0, le=1, description="Fraction of each batch that is drawn for similar captions; 0 is off."
    )
    max_logit_scale: float | None = Field(
        default=None, ge=1, description="Upper bound of the logit scale, applied after every step; null is off."
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of the moving average of the weights, which is then saved; null is off.",
    )
    patch_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Fraction of the patches that the image tower drops in training (FLIP); 0 is off.",
    )

    @field_validator("model")
    @classmethod
    def _check_size_names(cls, sizes: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if sizes and info.data.get("family") in ZOO:
            check_keys(sizes, ZOO[info.data["family"]].build_sizes)
        return sizes

    @model_validator(mode="after")
    def _check(self) -> "PretrainConfig":
        if self.family not in ZOO:
            known = f"{nearest(self.family, ZOO)}, all: {', '.join(ZOO)}"
            raise ValueError(f"family {self.family!r} is not in the zoo; {known}")
        if self.init_from is not None and self.model:
            raise ValueError(f"init_from {self.init_from!r} determines the sizes; remove model")
        if self.training.save_every and self.training.trainer.get("dataloader_num_workers"):
            raise ValueError(
                "save_every needs dataloader_num_workers 0: random numbers of a worker process cannot be repeated"
            )
        return self
