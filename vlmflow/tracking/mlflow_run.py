"""The MLflow run of a step, or nothing.

    with tracking.run("align", parent_id=pipeline_run, params={"align": section}, tags={"dataset": hash}):
        ...                                   # a Trainer with report_to="mlflow" logs into this run
        tracking.current().log_metrics({"accuracy": 0.8})

Without MLFLOW_TRACKING_URI the store is SQLite under VLMFLOW_HOME (default `runs`); VLMFLOW_TRACKING=off tracks
nothing. A server that is away is waited for, VLMFLOW_MLFLOW_WAIT seconds long. mlflow is imported only when a run or
the registry is really wanted: it costs seconds.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmflow.errors import ServiceError, SpaceError

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

EXPERIMENT = "vlmflow"

# Set before mlflow is imported, and only where the user has not: no telemetry, no chatter, bounded waits.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Artifacts through the server: the bucket behind it is for the server to reach, and need not be for us.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # of one request: an upload of a checkpoint needs it
}
_PROBE_SECONDS = 5.0
_WAIT_SECONDS = 3.0  # enough for a word on the terminal; a cluster's pods are told to wait for minutes
_TEXT_LENGTH = 5000


def home() -> Path:
    """The folder of runs and of the local store: VLMFLOW_HOME, or `runs`."""
    return Path(os.environ.get("VLMFLOW_HOME", "runs")).resolve()


def store(root: str | Path | None = None) -> str:
    """The URI of the MLflow store: MLFLOW_TRACKING_URI, or the SQLite file under `root` (default `home()`)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(root or home()).resolve() / 'mlflow.db'}"


def enabled() -> bool:
    """Whether steps are tracked (VLMFLOW_TRACKING is not `off`)."""
    return os.environ.get("VLMFLOW_TRACKING", "on").lower() not in ("off", "0", "false", "no")


def client(root: str | Path | None = None) -> "MlflowClient":
    """A client of the store, which is made ready first: it answers, and it has the experiment.

    Raises:
        ServiceError: the MLflow server does not answer, or refuses.
        SpaceError: the local store cannot be written.
    """
    uri, wait = store(root), _wait()
    if uri.startswith(("http://", "https://")):
        _probe(uri, wait)
    # mlflow waits 1, 2, 4, … seconds between its tries: so many of them as last about as long
    for name, value in {**_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(int(wait).bit_length())}.items():
        os.environ.setdefault(name, value)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    local = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else None
    with _creation(local), answering(uri):
        _point_at(mlflow, uri)
        connection = mlflow.MlflowClient(tracking_uri=uri)
        if connection.get_experiment_by_name(EXPERIMENT) is None:
            place = (local / "mlartifacts").as_uri() if local else None
            connection.create_experiment(EXPERIMENT, artifact_location=place)
        mlflow.set_experiment(EXPERIMENT)
    return connection


def _refusal(uri: str, error: Exception) -> ServiceError:
    """One line with the remedy; a server that answers has a bucket or a database behind it that does not."""
    text = " ".join(str(error).split())
    reason = (text.partition("(Caused by ")[2] or text)[:160]  # the end of mlflow's chain of retries says it
    remedy = "start the server, or unset MLFLOW_TRACKING_URI for a local store, or say VLMFLOW_TRACKING=off"
    if uri.startswith("http") and "/mlflow-artifacts/" in text:
        reason, remedy = f"its artifacts: {reason}", "see to its bucket and the key for it; the server's log says more"
    elif uri.startswith("http") and "error responses" in text:
        remedy = "it answers, and cannot do it: see to its database; the server's log says more"
    return ServiceError(f"MLflow at {uri}: {type(error).__name__}: {reason}; {remedy}")


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn what mlflow raises when its store is gone or refuses into one line; a wrong argument stays a bug."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            raise
        raise _refusal(uri, error) from error


class NoRun:
    """Takes whatever a run takes, and keeps nothing: tracking is off."""

    id: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep nothing."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keep nothing."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Keep nothing."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep nothing."""


class Run:
    """One MLflow run that is going on. Its methods raise ServiceError where the store has gone."""

    def __init__(self, client: "MlflowClient", uri: str, id: str):
        self.client, self.uri, self.id = client, uri, id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log named figures, at a step of training or once."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with answering(self.uri):
            self.client.log_batch(self.id, metrics=[Metric(k, float(v), now, step or 0) for k, v in metrics.items()])

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings; a nested mapping becomes dotted keys."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)[:_TEXT_LENGTH]) for key, value in _flat(params)]
        with answering(self.uri):
            for start in range(0, len(entries), 100):  # the store takes 100 at a time
                self.client.log_batch(self.id, params=entries[start : start + 100])

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; None is left out."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, str(value)[:_TEXT_LENGTH]) for key, value in tags.items() if value is not None]
        with answering(self.uri):
            self.client.log_batch(self.id, tags=entries)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file, or a folder's content, into the run's artifacts."""
        copy = self.client.log_artifacts if Path(path).is_dir() else self.client.log_artifact
        with answering(self.uri):
            copy(self.id, str(path), artifact_path=folder)


_current: list[Run | NoRun] = [NoRun()]


def current() -> Run | NoRun:
    """The innermost run of this process; a `NoRun` outside of `run` or with tracking off."""
    return _current[-1]


@contextmanager
def run(
    name: str,
    *,
    parent_id: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
) -> Iterator[Run | NoRun]:
    """One MLflow run, nested under `parent_id` or under the run that is going on.

    It is the fluent API's active run, so a Trainer in this process logs into it; `inherited()` hands it to child
    processes. It ends FINISHED, FAILED on an exception, KILLED on an interrupt.

    Raises:
        ServiceError: the store is out of reach, before the work starts or when the run is to be closed.
    """
    if not enabled():
        yield NoRun()
        return
    uri, before = store(root), os.environ.get("MLFLOW_TRACKING_URI")
    connection = client(root)
    import mlflow

    parent = parent_id or current().id
    own = {"mlflow.runName": name, **({"mlflow.parentRunId": parent} if parent else {})}
    outer = os.environ.pop("MLFLOW_RUN_ID", None)  # else a Trainer would try to start a second run
    with answering(uri):
        experiment = connection.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None  # `client` has made it
        entity = connection.create_run(experiment.experiment_id, run_name=name, tags=own)
        mlflow.start_run(run_id=entity.info.run_id, nested=True)
    this = Run(connection, uri, entity.info.run_id)
    _current.append(this)
    status = "FAILED"
    try:
        this.log_params(params or {})
        this.set_tags(tags or {})
        yield this
        status = "FINISHED"
    except (KeyboardInterrupt, GeneratorExit):
        status = "KILLED"
        raise
    finally:
        _current.remove(this)
        try:
            with answering(uri):
                mlflow.end_run(status)
        except ServiceError as error:
            if status == "FINISHED":  # else the first error is the one to show
                raise
            logger.warning("%s", error)
        finally:
            _restore("MLFLOW_TRACKING_URI", before)
            _restore("MLFLOW_RUN_ID", outer)


def report_to() -> list[str]:
    """What a Trainer's `report_to` has to say, here or in a child process.

    A second Trainer of one step wants a `run` of its own: MLflow refuses to log a parameter twice.
    """
    return ["mlflow"] if current().id or os.environ.get("MLFLOW_RUN_ID") else []


@contextmanager
def inherited() -> Iterator[None]:
    """While this lasts, a child process that is started logs into the current run.

    Not for a Trainer in this process: seeing MLFLOW_RUN_ID it would try to start the run that is going on already.
    """
    here = current()
    if not isinstance(here, Run):
        yield
        return
    given = {"MLFLOW_TRACKING_URI": here.uri, "MLFLOW_RUN_ID": here.id, "MLFLOW_EXPERIMENT_NAME": EXPERIMENT}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            _restore(name, value)


def _restore(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


def _wait() -> float:
    given = os.environ.get("VLMFLOW_MLFLOW_WAIT", str(_WAIT_SECONDS))
    try:
        return max(0.0, float(given))
    except ValueError:
        raise ServiceError(f"VLMFLOW_MLFLOW_WAIT={given!r}: not a number of seconds; write one, such as 300") from None


def _probe(uri: str, wait: float) -> None:
    """Ask the server whether it lives, again and again for `wait` seconds: one that is started or moved comes back."""
    import httpx
    from google.api_core.exceptions import RetryError
    from google.api_core.retry import Retry, if_exception_type

    def ask() -> None:
        answer = httpx.get(f"{uri.rstrip('/')}/health", timeout=_PROBE_SECONDS)
        if answer.status_code in (502, 503, 504):  # what stands before it answers
            answer.raise_for_status()

    def tell(error: Exception) -> None:
        logger.warning("MLflow at %s: %s; waiting up to %g s (VLMFLOW_MLFLOW_WAIT)", uri, error, wait)

    again = Retry(if_exception_type(httpx.HTTPError), initial=0.5, maximum=10.0, timeout=wait, on_error=tell)
    try:
        again(ask)()
    except RetryError as error:
        raise _refusal(uri, error.cause) from error


@contextmanager
def _creation(folder: Path | None) -> Iterator[None]:
    """One process at a time: two that create the same SQLite store break each other's migrations."""
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".mlflow.lock").open("w")
    except OSError as error:
        raise SpaceError(f"{folder}: the MLflow store cannot be written: {error.strerror}; set VLMFLOW_HOME") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _point_at(mlflow: Any, uri: str) -> None:
    """Make `uri` the fluent API's store, and leave the environment as it was."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    _restore("MLFLOW_TRACKING_URI", before)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
