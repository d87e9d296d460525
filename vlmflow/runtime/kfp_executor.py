"""Call a step's function through KFP's executor."""

import errno
from importlib import import_module
from typing import Any

from vlmflow.errors import SpaceError
from vlmflow.runtime.step_task import StepTask

_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def execute(task: StepTask, executor_input: dict[str, Any] | None = None) -> None:
    """Call the task's function.

    Args:
        task: the task.
        executor_input: KFP's executor input, if it differs from the task's.

    Raises:
        SpaceError: the disk is full or not writable. VlmflowError: as the step raises it.
    """
    from kfp.dsl.executor import Executor

    try:
        function = getattr(import_module(task.module), task.function)
        Executor(executor_input=executor_input or task.executor_input, function_to_execute=function).execute()
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            path = error.filename or task.folder
            raise SpaceError(f"{path}: cannot write: {error.strerror}; free space, or write elsewhere") from error
        raise
