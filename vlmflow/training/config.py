"""The budget of a training stage, as a recipe states it."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A budget in optimizer steps, so that the same recipe gives the same weights on a slow machine.

    No steps leave the model as it starts. `seconds` is a budget of each process's own time instead: a few steps on a
    copy say how many fit in it, and the schedule runs to its end. `muon_scale` is the rate of the blocks' matrices
    (Muon) over that of everything else (AdamW). `trainer` holds further arguments of the library's trainer by their
    own names.

    `processes` train together on each of `nodes`. More nodes than one are a TrainJob's: the step submits it to the
    cluster that it runs in and waits, and each node asks for `resources` by Kubernetes' names, such as
    `nvidia.com/gpu: 8`, or for what the runtime says. `sharding: fsdp` keeps a share of weights, gradients and
    optimizer state in each process (FSDP2) instead of all of it in every one. A checkpoint every `save_every` steps
    lets a training that was killed go on (see `resume.py`).
    """

    max_steps: int = 100
    seconds: float | None = None
    batch_size: int = 32  # over all processes of all nodes
    learning_rate: float = 1e-3
    optimizer: Literal["muon", "adamw"] = "muon"
    muon_scale: float = 1.0
    weight_decay: float = 0.01
    warmup_steps: int = 20
    processes: int = 1
    nodes: int = 1
    resources: dict[str, Any] = field(default_factory=dict)
    sharding: Literal["none", "fsdp"] = "none"
    save_every: int | None = None
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
        if self.batch_size < 1 or self.processes < 1 or self.nodes < 1:
            raise ValueError("batch_size, processes and nodes must be at least 1")
        if self.batch_size % self.world:
            nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
            raise ValueError(f"batch_size {self.batch_size} does not divide by processes {self.processes}{nodes}")
        if self.resources and self.nodes == 1:
            raise ValueError("resources are those of the nodes of a TrainJob, and there are none; give nodes above 1")
        if self.sharding == "fsdp" and self.world == 1:
            raise ValueError("sharding fsdp shares a model among processes, and there is one; give more, or none")
        if self.save_every is not None:
            if self.save_every < 1:
                raise ValueError(f"save_every must be at least 1 step or null, got {self.save_every}")
            if self.seconds is not None:
                raise ValueError("save_every goes with max_steps: how many steps fit in seconds differs each time")
        if self.learning_rate <= 0 or self.muon_scale <= 0:
            raise ValueError(f"learning_rate {self.learning_rate} and muon_scale {self.muon_scale} must be above 0")
        if self.optimizer == "adamw" and self.muon_scale != 1:
            raise ValueError(f"muon_scale {self.muon_scale} has no meaning with optimizer adamw; leave it out")

    @property
    def world(self) -> int:
        """Processes on all nodes."""
        return self.nodes * self.processes
