"""The section `align` of a recipe."""

from pydantic import Field, model_validator

from vlmflow.config.section import Section
from vlmflow.training.augment_config import MildAugmentConfig
from vlmflow.training.config import TrainingConfig


class AlignConfig(Section):
    """Preference alignment by DPO. A control trains by SFT on the chosen answers with the same budget.

    Both train at once: in two processes of this machine, or as two TrainJobs if `training.nodes` is above 1.
    """

    beta: float = Field(default=0.1, gt=0, description="β of DPO: strength of the pull towards the reference model.")
    losses: tuple[str, ...] = Field(default=("sigmoid", "sft"), description="Loss terms, by TRL's names.")
    weights: tuple[float, ...] = Field(
        default=(1.0, 1.0), description="Weight of each loss term, in the order of `losses`."
    )
    training: TrainingConfig = Field(
        default_factory=TrainingConfig, description="Budget of each of the two trainings; `processes` must be 1."
    )
    augment: MildAugmentConfig | None = Field(
        default_factory=MildAugmentConfig, description="Augmentation of images; boxes move along. Null is off."
    )
    min_pairs: int = Field(
        default=32, description="Preference pairs needed; with fewer the step is skipped and the model is passed on."
    )

    @model_validator(mode="after")
    def _check(self) -> "AlignConfig":
        if len(self.losses) != len(self.weights):
            raise ValueError(f"losses and weights must have the same length, got {self.losses} and {self.weights}")
        if self.training.processes != 1 and self.training.nodes == 1:
            raise ValueError(
                f"training.processes must be 1, got {self.training.processes}: DPO and its control "
                f"are the two processes"
            )
        self.training.forbid_seconds()
        return self
