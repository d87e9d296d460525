"""A stage of supervised fine-tuning: captioning, grounding, reading."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmflow.artifacts import checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes as recipes
from vlmflow.training.config import TrainingConfig
from vlmflow.training.launcher import spread


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


def tune(*, model_in: Path | None, conversations: Path, out: Path, section: FineTuneConfig, step: str) -> None:
    """Fine-tune the model at `model_in` and write a checkpoint to `out`.

    Raises:
        DataError: no training conversation of the stage's task.
    """
    from vlmflow.training.sft import train  # TRL takes seconds to import

    spread(step, train, section.training, model_in, conversations, section, step, out=out)


def stage(*, model_in: Path, conversations: Path, out: Path, recipe: str, section: str) -> None:
    """A fine-tuning step of a pipeline: tune by the recipe's section, or hand the model on and say why.

    A recipe that leaves the section out skips the step, and so does data without the section's task.
    """
    if recipes.section(recipe, section) is None:
        checkpoint.hand_on(model_in, out, f"the recipe has no section {section!r}")
        return
    tuning = recipes.load(FineTuneConfig, recipe, section)
    data = Dataset(conversations, "conversations")
    tasks = data.table(["task", "split"]).to_pylist()
    if {"task": tuning.task, "split": "train"} not in tasks:
        checkpoint.hand_on(model_in, out, f"the data has no training conversation of task {tuning.task!r}")
        return
    tune(model_in=model_in, conversations=conversations, out=out, section=tuning, step=section)
