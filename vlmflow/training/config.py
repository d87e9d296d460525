"""The budget and optimizer of a training, as a recipe states them."""

from typing import Any, Literal

from pydantic import Field, model_validator

from vlmflow.config.section import Section


class TrainingConfig(Section):
    """Budget in optimizer steps, so that a recipe gives the same weights on a slow machine; optimizer and hardware."""

    max_steps: int = Field(default=100, ge=0, description="Optimizer steps; 0 leaves the model as initialised.")
    seconds: float | None = Field(
        default=None,
        gt=0,
        description="Budget in CPU seconds of each process (wall-clock seconds with a GPU) instead of "
        "`max_steps`: a few trial steps on a copy "
        "estimate how many steps fit, and the schedule covers these. Pretraining only; null uses `max_steps`.",
    )
    batch_size: int = Field(default=32, ge=1, description="Examples in a step, over all processes of all nodes.")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="Peak learning rate; linear warmup, then cosine decay to 0."
    )
    optimizer: Literal["muon", "adamw"] = Field(
        default="muon", description="`muon` trains the matrices of the blocks with Muon and the rest with AdamW."
    )
    muon_scale: float = Field(default=1.0, gt=0, description="Learning rate of Muon relative to that of AdamW.")
    weight_decay: float = Field(default=0.01, description="Decoupled weight decay.")
    warmup_steps: int = Field(default=20, description="Steps of linear warmup.")
    processes: int = Field(default=1, ge=1, description="Processes on each node.")
    nodes: int = Field(
        default=1,
        ge=1,
        description="Nodes; with more than 1 the step, itself in a cluster, submits a TrainJob and waits for it.",
    )
    resources: dict[str, Any] = Field(
        default_factory=dict,
        description="Kubernetes resources of each node, such as `nvidia.com/gpu: 8`; empty uses the TrainingRuntime's. "
        "Only with `nodes` above 1.",
    )
    sharding: Literal["none", "fsdp"] = Field(
        default="none",
        description="`fsdp` shards weights, gradients and optimizer state over the processes (FSDP2); `none` "
        "replicates them.",
    )
    save_every: int | None = Field(
        default=None,
        ge=1,
        description="Steps between checkpoints, from which a killed training resumes; null saves none.",
    )
    trainer: dict[str, Any] = Field(
        default_factory=dict,
        description="Further arguments of transformers' TrainingArguments (TRL's config in `align`), by their names.",
    )
    seed: int = Field(default=0, description="Seed of weights, data order and augmentation.")

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if self.seconds is not None and self.max_steps != type(self).model_fields["max_steps"].default:
            raise ValueError(f"max_steps {self.max_steps} and seconds {self.seconds} are two budgets; set one of them")
        if self.batch_size % self.world:
            nodes = f" on {self.nodes} nodes" if self.nodes > 1 else ""
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of processes {self.processes}{nodes}")
        if self.resources and self.nodes == 1:
            raise ValueError("resources apply to the nodes of a TrainJob, which needs nodes above 1")
        if self.sharding == "fsdp" and self.world == 1:
            raise ValueError("sharding fsdp needs more than one process; increase processes or nodes, or use none")
        if self.save_every is not None and self.seconds is not None:
            raise ValueError("save_every needs max_steps: the number of steps that fit in seconds varies between runs")
        if self.optimizer == "adamw" and self.muon_scale != 1:
            raise ValueError(f"muon_scale {self.muon_scale} has no effect with optimizer adamw; remove it")
        return self

    def forbid_seconds(self) -> None:
        """Raise ValueError if the budget is given in seconds, which only pretraining supports."""
        if self.seconds is not None:
            raise ValueError("training.seconds is supported by pretraining only; set training.max_steps")

    @property
    def world(self) -> int:
        """Number of processes on all nodes."""
        return self.nodes * self.processes
