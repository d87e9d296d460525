"""The configuration of preference alignment."""

from dataclasses import dataclass, field

from vlmflow.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """DPO's strength and the losses it is mixed with; the control takes the same budget on the chosen answers.

    Both train at once: as the two processes of this machine, or as two TrainJobs where `training.nodes` are several.
    """

    beta: float = 0.1
    losses: tuple[str, ...] = ("sigmoid", "sft")
    weights: tuple[float, ...] = (1.0, 1.0)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    min_pairs: int = 32

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta {self.beta} must be above 0")
        if len(self.losses) != len(self.weights):
            raise ValueError(f"losses and weights must go in pairs, got {self.losses} and {self.weights}")
        if self.training.processes != 1 and self.training.nodes == 1:
            raise ValueError("training.processes must be 1: DPO and its control are the two processes")
        if self.training.seconds is not None:
            raise ValueError("training.seconds is a budget of pretraining alone; give max_steps")
