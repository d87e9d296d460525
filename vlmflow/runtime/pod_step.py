"""A task in a pod of a cluster, where KFP keeps the cache and the outputs, and the record goes to MLflow.

Environment, from the placement and from KFP:

VLMFLOW_KFP_RUN: ID of KFP's run. KFP does not replace its placeholder in a container's arguments, and a parameter would
    be part of KFP's cache key; so it is read from the pod's label.
MLFLOW_RUN_ID: MLflow run of this task, if KFP's MLflow plugin is enabled; otherwise the step creates one.
"""

import logging
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
from vlmflow.tracking import mlflow_store, step_run

logger = logging.getLogger(__name__)

KFP_RUN, OWN_RUN = "VLMFLOW_KFP_RUN", "MLFLOW_RUN_ID"


def run_in_pod(task: StepTask) -> None:
    """Execute the task, and log its record to MLflow if MLFLOW_TRACKING_URI is set.

    Raises:
        ServiceError: MLflow is unreachable, before the execution or while the record is logged.
    """
    kfp_run = os.environ.get(KFP_RUN, "")
    own_run = os.environ.pop(OWN_RUN, "")  # otherwise a Trainer in this process would end it
    record = StepRecord(task)
    tracked = is_tracked(task)
    parent = _pipeline_run(task, kfp_run, own_run) if tracked else None
    meter, error = ResourceMeter(), None
    record.values = fingerprint(task)
    try:
        execute(task)
    except BaseException as problem:
        error = problem
        raise
    finally:
        usage = meter.usage()
        if tracked:
            content = record.content(
                "failed" if error else "done",
                **usage,
                image=os.environ.get("VLMFLOW_IMAGE") or image_name("step"),
                kfp_run=kfp_run or None,
                error=str(error) if error else None,
                outputs={
                    name: {"path": str(path), "hash": content_hash(path)}
                    for name, path in task.outputs.items()
                    if path.exists()
                },
            )
            _log(content, parent, own_run, error)


def is_tracked(task: StepTask) -> bool:
    """Return whether the record goes to MLflow; warn if nobody has decided that it does not."""
    if not mlflow_store.enabled():
        return False
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return True
    logger.warning(
        "%s: MLFLOW_TRACKING_URI is not set, so MLflow has no record of this step, and a registered model is lost with "
        "this pod: create the ConfigMap vlmflow with this key in the namespace of the run (docs/on-kubeflow.md), "
        "or set VLMFLOW_TRACKING=off",
        task.function,
    )
    return False


def _pipeline_run(task: StepTask, kfp_run: str, own_run: str) -> str | None:
    try:
        if own_run:
            return step_run.adopt_pipeline_run(kfp_run, own_run)
        if not kfp_run:
            logger.warning("%s: %s is not set, so the MLflow run of this step has no parent", task.function, KFP_RUN)
            return None
        return step_run.find_or_create_pipeline_run(kfp_run)
    except ServiceError:
        if not task.traits.tracking_optional:
            raise
        return None


def _log(content: dict[str, Any], parent: str | None, own_run: str, error: BaseException | None) -> None:
    try:
        step_run.log_step(content, parent, own_run)
    except ServiceError as service_error:
        if error is None:
            raise
        # The step's own error is more important.
        print(f"warning: {content['step']}: not logged: {service_error}", file=sys.stderr)  # noqa: T201
