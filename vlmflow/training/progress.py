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
        self.curve = []
        for logs in state.log_history:
            self._add(int(logs["step"]), {name: value for name, value in logs.items() if name != "step"})
        self.start_step = state.global_step

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Keep the metrics of the step.

        Raises:
            FloatingPointError: the loss is not finite, which no further step would repair.
        """
        metrics = self._add(state.global_step, logs or {})
        if state.is_world_process_zero and "eval_loss" in metrics:
            logger.info("step %d of %d  held-out loss %.3f", state.global_step, state.max_steps, metrics["eval_loss"])
        if "loss" not in metrics:
            return
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(f"the loss is {metrics['loss']} at step {state.global_step}")
        if state.is_world_process_zero:
            elapsed = time.monotonic() - self.start_time
            remaining = elapsed / (state.global_step - self.start_step) * (state.max_steps - state.global_step)
            logger.info(
                "step %d of %d  loss %.3f  %.0f s left", state.global_step, state.max_steps, metrics["loss"], remaining
            )

    def _add(self, step: int, logs: dict[str, Any]) -> dict[str, float]:
        """Add the point of a step, or the held-out loss to the point of the same step; return the numbers in `logs`."""
        metrics = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        if "loss" in metrics:
            self.curve.append({"step": step, **metrics})
        elif "eval_loss" in metrics and self.curve:
            self.curve[-1]["held_out_loss"] = metrics["eval_loss"]
        return metrics
