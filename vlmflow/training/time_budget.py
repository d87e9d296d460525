"""A budget in seconds, converted to optimizer steps by a short trial."""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmflow.training.config import TrainingConfig

logger = logging.getLogger(__name__)

WARMUP_STEPS, TIMED_STEPS = 2, 8  # of the trial


class StepClock(TrainerCallback):
    """Records when each step of the trial ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Record the time."""
        self.ends.append(process_seconds())


def process_seconds() -> float:
    """CPU seconds of this process, so that load on the machine does not reduce the steps; wall-clock with a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def steps_for_seconds(training: TrainingConfig, trial: Callable[[TrainingConfig, StepClock], Any]) -> TrainingConfig:
    """Replace the budget `training.seconds` by steps, the same in every process; the trial counts towards the budget.

    Args:
        trial: trains a copy of the model with the given budget and clock.
    """
    assert training.seconds is not None
    start, clock = process_seconds(), StepClock()
    silent = {**training.trainer, "logging_strategy": "no", "report_to": "none"}
    trial(
        training.model_copy(update={"seconds": None, "max_steps": WARMUP_STEPS + TIMED_STEPS, "trainer": silent}), clock
    )
    seconds_per_step = (clock.ends[-1] - clock.ends[WARMUP_STEPS - 1]) / TIMED_STEPS
    steps = torch.tensor((training.seconds - (process_seconds() - start)) / seconds_per_step)
    if dist.is_available() and dist.is_initialized():
        steps = steps.cuda() if torch.cuda.is_available() else steps
        dist.all_reduce(steps, dist.ReduceOp.MIN)
    chosen = max(1, int(steps))
    logger.info("%d steps of %.3f s in a budget of %g s", chosen, seconds_per_step, training.seconds)
    return training.model_copy(update={"seconds": None, "max_steps": chosen})
