"""What a recipe says of evaluation."""

from dataclasses import dataclass

CONTROLS = ("blank", "shuffled")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How many held-out examples a capability is measured on, and how many its controls.

    `held_out_loss` measures the family's own objective too, in batches of `loss_batch` pairs.
    """

    limit: int = 500
    questions: int = 300
    control_questions: int = 100
    resamples: int = 1000
    confidence: float = 0.95
    samples: int = 6
    held_out_loss: bool = False
    loss_batch: int = 32
    processes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.limit, self.questions, self.control_questions) < 2:
            raise ValueError(
                "limit, questions and control_questions must be at least 2: an interval needs two examples"
            )
        if min(self.processes, self.loss_batch) < 1:
            raise ValueError("processes and loss_batch must be at least 1")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence {self.confidence} must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """What a model must not lose.

    protected: capabilities that may not become worse; empty means all.
    tolerance: a loss of mean score that is accepted.
    min_examples: a capability with fewer examples is reported as unsure and does not refuse.
    """

    protected: tuple[str, ...] = ()
    confidence: float = 0.95
    resamples: int = 2000
    tolerance: float = 0.0
    min_examples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1, got {self.confidence}")
        if self.resamples < 100:
            raise ValueError(f"resamples must be at least 100, got {self.resamples}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance must not be negative, got {self.tolerance}")
        if self.min_examples < 2:
            raise ValueError(f"min_examples must be at least 2, got {self.min_examples}")
