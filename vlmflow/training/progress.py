"""Progress of a training: log lines and the loss curve."""

import logging
import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class Progress(TrainerCallback):
    """Logs the step, the loss and the time left, and keeps the loss curve for the report."""

    def __init__(self) -> None:
        self.curve: list[dict[str, float]] = []
        self.start_time, self.start_step = time.monotonic(), 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take over the curve of the training that this one resumes."""
        logged = (logs for logs in state.log_history if "loss" in logs)
        self.curve = [{"step": logs["step"]} | {k: float(v) for k, v in logs.items() if k != "step"} for logs in logged]
        self.start_step = state.global_step

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Keep the metrics of the step.

        Raises:
            FloatingPointError: the loss is not finite, which no further step would repair.
        """
        if not logs or "loss" not in logs:
            return
        metrics = {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(f"the loss is {metrics['loss']} at step {state.global_step}")
        self.curve.append({"step": state.global_step, **metrics})
        if state.is_world_process_zero:
            elapsed = time.monotonic() - self.start_time
            remaining = elapsed / (state.global_step - self.start_step) * (state.max_steps - state.global_step)
            logger.info(
                "step %d of %d  loss %.3f  %.0f s left", state.global_step, state.max_steps, metrics["loss"], remaining
            )
