"""The MLflow store: its URI, a client, and one-line errors.

Without MLFLOW_TRACKING_URI the store is SQLite in VLMFLOW_HOME (default `runs`). VLMFLOW_TRACKING=off disables
tracking. If a server does not answer, requests are repeated for VLMFLOW_MLFLOW_WAIT seconds. mlflow is imported only
when a run or the registry is needed, because the import takes seconds.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmflow.errors import ServiceError
from vlmflow.tracking import local_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

EXPERIMENT = "vlmflow"
_reads_only = False

# Defaults, set before mlflow is imported: no telemetry, few messages, bounded waits.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Artifacts are transferred through the server, because a client may have no access to its bucket.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # per request; the upload of a checkpoint needs it
}
_PROBE_SECONDS = 5.0
_WAIT_SECONDS = 3.0  # for a command in a terminal; in a cluster VLMFLOW_MLFLOW_WAIT is minutes


def home() -> Path:
    """Return the folder of the runs and of the local store: VLMFLOW_HOME, or `runs`."""
    return Path(os.environ.get("VLMFLOW_HOME", "runs")).resolve()


def uri(root: str | Path | None = None) -> str:
    """Return the URI of the store: MLFLOW_TRACKING_URI, or the SQLite file in `root` (default `home()`)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_store.address(_database(root))


def read_only() -> None:
    """Let this process only read: a local store that cannot be written is then read from a copy."""
    global _reads_only
    _reads_only = True


def enabled() -> bool:
    """Return whether steps are tracked (VLMFLOW_TRACKING is not `off`)."""
    return os.environ.get("VLMFLOW_TRACKING", "on").lower() not in ("off", "0", "false", "no")


def client(root: str | Path | None = None) -> "MlflowClient":
    """Return a client of the store; the store answers, and the experiment exists.

    Raises:
        ServiceError: the MLflow server does not answer, or refuses a request.
        SpaceError: the local store cannot be written.
    """
    wait = _wait_seconds()
    address = uri(root)
    _check_address(address)
    if address.startswith(("http://", "https://")):
        _wait_for_server(address, wait)
    # mlflow waits 1, 2, 4, … seconds between retries: as many retries as fit into `wait`
    for name, value in {**_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(int(wait).bit_length())}.items():
        os.environ.setdefault(name, value)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with service_errors(address), _prepared(address, root):
        _set_fluent_store(mlflow, address)
        connection = mlflow.MlflowClient(tracking_uri=address)
        if connection.get_experiment_by_name(EXPERIMENT) is None:
            connection.create_experiment(EXPERIMENT)
        mlflow.set_experiment(EXPERIMENT)
    return connection


def experiment_id(connection: "MlflowClient") -> str:
    """Return the ID of the experiment in which we create runs."""
    experiment = connection.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None  # `client` creates it
    return experiment.experiment_id


def experiment_ids(connection: "MlflowClient") -> list[str]:
    """Return the IDs of all experiments: KFP's MLflow plugin creates the runs of its tasks in one of its own."""
    return [experiment.experiment_id for experiment in connection.search_experiments()]


def _database(root: str | Path | None = None) -> Path:
    """Return the SQLite file in `root` or `home()`; a copy if it cannot be written and this process only reads."""
    file = Path(root or home()).resolve() / local_store.FILE
    return local_store.copy_to_read(file, EXPERIMENT) if _reads_only and not local_store.is_writable(file) else file


def _prepared(address: str, root: str | Path | None) -> AbstractContextManager[None]:
    """Return the context in which a SQLite store is created; servers, and a copy of a store, need none."""
    own = Path(root or home()).resolve() / local_store.FILE
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return local_store.prepared(own, EXPERIMENT) if _database(root) == own else nullcontext()
    if address.startswith("sqlite:///") and "?" not in address:
        return local_store.prepared(Path(address.removeprefix("sqlite:///")).absolute(), EXPERIMENT)
    return nullcontext()


def _check_address(address: str) -> None:
    """Refuse an address that MLflow would take for a folder.

    Raises:
        ServiceError: it has no protocol.
    """
    if not re.match(r"[a-z][a-z0-9+.-]*:/", address) and address != "databricks":
        raise ServiceError(
            f"MLFLOW_TRACKING_URI={address!r}: has no protocol; write http://host:port or sqlite:////folder/mlflow.db"
        )


@contextmanager
def service_errors(address: str | None = None) -> Iterator[None]:
    """Raise ServiceError, one line, for errors of a store that is unreachable or refuses a request.

    A wrong argument is a bug and keeps its exception.

    Args:
        address: the store's URI; None is `uri()`.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ModuleNotFoundError as error:  # the driver of a database
        raise ServiceError(
            f"MLflow at {address or uri()}: the Python package {error.name!r} is missing; install it"
        ) from error
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
            raise
        raise _service_error(address or uri(), error) from error


def _service_error(address: str, error: Exception) -> ServiceError:
    """Return one line with the remedy; an answering server may have an unreachable bucket or database behind it."""
    text = " ".join(str(error).split())
    reason = (text.partition("(Caused by ")[2] or text)[:160]  # the end of mlflow's chain of retries has the cause
    remedy = "start the server, or unset MLFLOW_TRACKING_URI for a local store, or set VLMFLOW_TRACKING=off"
    if address.startswith("http") and "/mlflow-artifacts/" in text:
        reason, remedy = f"artifacts: {reason}", "check the server's bucket and its access key; see the server's log"
    elif address.startswith("http") and "error responses" in text:
        remedy = "the server answers with errors: check its database; see the server's log"
    return ServiceError(f"MLflow at {address}: {type(error).__name__}: {reason}; {remedy}")


def restore_variable(name: str, value: str | None) -> None:
    """Set an environment variable to an earlier value; None removes it."""
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


def _wait_seconds() -> float:
    text = os.environ.get("VLMFLOW_MLFLOW_WAIT", str(_WAIT_SECONDS))
    try:
        return max(0.0, float(text))
    except ValueError:
        raise ServiceError(f"VLMFLOW_MLFLOW_WAIT={text!r}: not a number of seconds; write one, such as 300") from None


def _wait_for_server(address: str, wait: float) -> None:
    """Wait until the server answers, at most `wait` seconds; it may be starting or moving."""
    import httpx
    from google.api_core.exceptions import RetryError
    from google.api_core.retry import Retry, if_exception_type

    def probe() -> None:
        response = httpx.get(f"{address.rstrip('/')}/health", timeout=_PROBE_SECONDS)
        if response.status_code in (502, 503, 504):  # from a proxy in front of the server
            response.raise_for_status()

    def warn(error: Exception) -> None:
        logger.warning("MLflow at %s: %s; waiting up to %g s (VLMFLOW_MLFLOW_WAIT)", address, error, wait)

    retry = Retry(if_exception_type(httpx.HTTPError), initial=0.5, maximum=10.0, timeout=wait, on_error=warn)
    try:
        retry(probe)()
    except RetryError as error:
        raise _service_error(address, error.cause) from error


def _set_fluent_store(mlflow: Any, address: str) -> None:
    """Set the store of mlflow's fluent API, and leave the environment unchanged."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    restore_variable("MLFLOW_TRACKING_URI", before)
