"""Call a step's function through KFP's executor."""

import logging
from importlib import import_module
from typing import Any

from vlmflow.runtime import left_out
from vlmflow.runtime.space import space_errors
from vlmflow.runtime.step_task import StepTask

logger = logging.getLogger(__name__)


def execute(task: StepTask, executor_input: dict[str, Any] | None = None) -> None:
    """Call the task's function, or write its outputs without it if the task is left out.

    Args:
        task: the task.
        executor_input: KFP's executor input, if it differs from the task's.

    Raises:
        SpaceError: the disk is full or not writable. VlmflowError: as the step raises it.
    """
    from kfp.dsl.executor import Executor

    if reason := left_out.reason_to_leave_out(task):
        logger.warning("%s is left out: %s", task.label, reason)
        left_out.write_outputs(task, reason)
        return
    with space_errors(task.folder):
        function = getattr(import_module(task.module), task.function)
        Executor(executor_input=executor_input or task.executor_input, function_to_execute=function).execute()
