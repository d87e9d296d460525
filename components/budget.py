"""The budget of a training stage, as a recipe states it."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Training:
    """A budget in optimizer steps, so that the same recipe gives the same weights on a slow machine.

    No steps leave the model as it starts. `seconds` is a budget of each process's own time instead: a few steps on a
    copy say how many fit in it, and the schedule runs to its end. `muon_scale` is the rate of the blocks' matrices
    (Muon) over that of everything else (AdamW). `trainer` holds further arguments of the library's trainer by their
    own names.
    """

    max_steps: int = 100
    seconds: float | None = None
    batch_size: int = 32  # over all processes
    learning_rate: float = 1e-3
    optimizer: Literal["muon", "adamw"] = "muon"
    muon_scale: float = 1.0
    weight_decay: float = 0.01
    warmup_steps: int = 20
    processes: int = 1
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"max_steps must not be negative, got {self.max_steps}")
        if self.seconds is not None:
            if self.seconds <= 0:
                raise ValueError(f"seconds must be above 0, got {self.seconds}")
            if self.max_steps != type(self).max_steps:
                raise ValueError(f"max_steps {self.max_steps} and seconds {self.seconds} are two budgets; give one")
        if self.batch_size < 1 or self.processes < 1:
            raise ValueError("batch_size and processes must be at least 1")
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size {self.batch_size} does not divide by processes {self.processes}")
        if self.learning_rate <= 0 or self.muon_scale <= 0:
            raise ValueError(f"learning_rate {self.learning_rate} and muon_scale {self.muon_scale} must be above 0")
        if self.optimizer == "adamw" and self.muon_scale != 1:
            raise ValueError(f"muon_scale {self.muon_scale} has no meaning with optimizer adamw; leave it out")
