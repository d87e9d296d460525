"""The MLflow run of a step; a null object if tracking is off.

with mlflow_run.start_run("align", parent_id=pipeline_run, params={"align": section}, tags={"dataset": hash}):
    mlflow_run.current_run().log_metrics({"accuracy": 0.8})
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmflow.errors import ServiceError
from vlmflow.runtime.container_image import revision
from vlmflow.tracking import mlflow_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

logger = logging.getLogger(__name__)

_TEXT_LENGTH = 5000


class NullRun:
    """A run that discards everything, for tracking that is off."""

    id: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Discard."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Discard."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Discard."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Discard."""

    def log_datasets(self, datasets: Sequence["DatasetInput"]) -> None:
        """Discard."""


class Run:
    """An active MLflow run. Its methods raise ServiceError if the store is unreachable."""

    def __init__(self, client: "MlflowClient", uri: str, id: str):
        self.client, self.uri, self.id = client, uri, id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, at a training step or once."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with mlflow_store.service_errors(self.uri):
            self.client.log_batch(self.id, metrics=[Metric(k, float(v), now, step or 0) for k, v in metrics.items()])

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; the keys of a nested mapping are joined with dots."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:_TEXT_LENGTH]) for key, value in _flatten(params)]
        with mlflow_store.service_errors(self.uri):
            for start in range(0, len(entries), 100):  # the store's limit per request
                self.client.log_batch(self.id, params=entries[start : start + 100])

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; None is skipped."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, str(value)[:_TEXT_LENGTH]) for key, value in tags.items() if value is not None]
        with mlflow_store.service_errors(self.uri):
            self.client.log_batch(self.id, tags=entries)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file, or the content of a folder, into the run's artifacts."""
        copy = self.client.log_artifacts if Path(path).is_dir() else self.client.log_artifact
        with mlflow_store.service_errors(self.uri):
            copy(self.id, str(path), artifact_path=folder)

    def log_datasets(self, datasets: Sequence["DatasetInput"]) -> None:
        """Log datasets as inputs of the run; one that it has already changes nothing."""
        with mlflow_store.service_errors(self.uri):
            self.client.log_inputs(self.id, datasets)


_active: list[Run | NullRun] = [NullRun()]


def current_run() -> Run | NullRun:
    """Return the innermost active run of this process; a `NullRun` if there is none or tracking is off."""
    return _active[-1]


@contextmanager
def start_run(
    name: str,
    *,
    run_id: str = "",
    parent_id: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
) -> Iterator[Run | NullRun]:
    """Run the body as one MLflow run, nested under `parent_id` or under the active run.

    With `run_id` it is that existing run, under its own parent. It is also the active run of mlflow's fluent API, so
    that a Trainer in this process logs into it. The run ends FINISHED, FAILED after an exception, or KILLED after an
    interrupt.

    Raises:
        ServiceError: the store is unreachable, before the body or when the run ends.
    """
    if not mlflow_store.enabled():
        yield NullRun()
        return
    uri, before = mlflow_store.uri(root), os.environ.get("MLFLOW_TRACKING_URI")
    client = mlflow_store.client(root)
    import mlflow

    parent = parent_id or current_run().id
    own_tags = {"mlflow.runName": name, "mlflow.source.name": "vlmflow", "mlflow.source.git.commit": revision()}
    if parent:
        own_tags["mlflow.parentRunId"] = parent
    outer = os.environ.pop("MLFLOW_RUN_ID", None)  # otherwise a Trainer would try to start a second run
    with mlflow_store.service_errors(uri):
        if run_id:
            mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
            client.update_run(run_id, name=name)
        else:
            run_id = client.create_run(mlflow_store.experiment_id(client), run_name=name, tags=own_tags).info.run_id
        # Use of CPU, memory and GPU, for the pipeline's run: None is MLflow's own setting.
        mlflow.start_run(run_id=run_id, nested=True, log_system_metrics=False if parent else None)
    run = Run(client, uri, run_id)
    _active.append(run)
    status = "FAILED"
    try:
        run.log_params(params or {})
        run.set_tags(tags or {})
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, GeneratorExit):
        status = "KILLED"
        raise
    finally:
        _active.remove(run)
        try:
            with mlflow_store.service_errors(uri):
                mlflow.end_run(status)
        except ServiceError as error:
            if status == "FINISHED":  # otherwise the first error is more important
                raise
            logger.warning("%s", error)
        finally:
            mlflow_store.restore_variable("MLFLOW_TRACKING_URI", before)
            mlflow_store.restore_variable("MLFLOW_RUN_ID", outer)


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
