"""The configuration of a fine-tuning stage: captioning, grounding or OCR."""

from dataclasses import dataclass, field
from typing import Any

from vlmflow.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig:
    """A stage of fine-tuning.

    `task` is what the stage teaches; `also` are earlier tasks whose turns stay. Pictures that have a turn of
    `task` make up 1 − `replay` of what is seen, other pictures the rest. `family` and `model` grow a new
    language model where the incoming one is a dual encoder.
    """

    task: str
    also: tuple[str, ...] = ()
    replay: float = 0.0
    training: TrainingConfig = field(default_factory=TrainingConfig)
    family: str = ""
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.replay < 1:
            raise ValueError(f"replay {self.replay} is a share and must be in [0, 1)")
        if self.training.seconds is not None:
            raise ValueError("training.seconds is a budget of pretraining alone; give max_steps")
