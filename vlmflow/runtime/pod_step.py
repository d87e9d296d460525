"""A task in a pod of a cluster, where KFP keeps the cache and the outputs, and the record goes to MLflow."""

import os
import sys
from typing import Any

from vlmflow.artifacts.hashing import content_hash
from vlmflow.errors import ServiceError
from vlmflow.runtime.container_image import image_name
from vlmflow.runtime.fingerprint import fingerprint
from vlmflow.runtime.kfp_executor import execute
from vlmflow.runtime.resource_meter import ResourceMeter
from vlmflow.runtime.step_record import StepRecord
from vlmflow.runtime.step_task import StepTask
from vlmflow.tracking import step_run


def run_in_pod(task: StepTask) -> None:
    """Execute the task, and log its record to MLflow if MLFLOW_TRACKING_URI is set.

    Raises:
        ServiceError: MLflow is unreachable, before the execution or while the record is logged.
    """
    os.environ["VLMFLOW_KFP_RUN"] = task.kfp_run
    record = StepRecord(task)
    parent = _pipeline_run(task) if os.environ.get("MLFLOW_TRACKING_URI") else None
    meter, error = ResourceMeter(), None
    record.values = fingerprint(task)
    try:
        execute(task)
    except BaseException as problem:
        error = problem
        raise
    finally:
        usage = meter.usage()
        if parent is not None:
            content = record.content(
                "failed" if error else "done",
                **usage,
                image=image_name("step"),
                kfp_run=task.kfp_run,
                error=str(error) if error else None,
                outputs={
                    name: {"path": str(path), "hash": content_hash(path)}
                    for name, path in task.outputs.items()
                    if path.exists()
                },
            )
            _log(content, parent, error)


def _pipeline_run(task: StepTask) -> str | None:
    try:
        return step_run.find_or_create_pipeline_run(task.kfp_run)
    except ServiceError:
        if not task.traits.tracking_optional:
            raise
        return None


def _log(content: dict[str, Any], parent: str, error: BaseException | None) -> None:
    try:
        step_run.log_step(content, parent)
    except ServiceError as service_error:
        if error is None:
            raise
        # The step's own error is more important.
        print(f"warning: {content['step']}: not logged: {service_error}", file=sys.stderr)  # noqa: T201
