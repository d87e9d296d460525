"""The MLflow store of one machine: a SQLite file, and the artifacts beside it in the folder `mlartifacts`."""

import atexit
import fcntl
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from vlmflow.artifacts.hashing import cache_key
from vlmflow.errors import SpaceError

FILE = "mlflow.db"
_PLAIN = re.compile(r"[\w/.\-+ ~=,@]*", re.ASCII)  # characters with one meaning in a path and in SQLAlchemy's URLs
_ADDRESSES = {  # columns with the address of artifacts
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


def address(file: Path) -> str:
    """Return the URI of the store in the SQLite file `file`."""
    return f"sqlite:///{_plain_path(file.parent)}/{file.name}"


def artifacts(file: Path) -> str:
    """Return the URI of the folder of the artifacts."""
    return (file.parent / "mlartifacts").as_uri()


def is_writable(file: Path) -> bool:
    """Whether the store can be written, or created."""
    nearest = next(place for place in (file.parent, *file.parent.parents) if place.exists())
    return os.access(nearest, os.W_OK) and (not file.exists() or os.access(file, os.W_OK))


@contextmanager
def prepared(file: Path, experiment: str) -> Iterator[None]:
    """Create the store, or adapt it to its place, while no other process does.

    Raises:
        SpaceError: the folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = (file.parent / ".mlflow.lock").open("w")
    except OSError as error:
        raise SpaceError(f"{file.parent}: cannot write the MLflow store: {error.strerror}; set VLMFLOW_HOME") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():
            _follow_move(file, artifacts(file), experiment)
        else:
            _create(file, experiment)
        yield


@cache
def copy_to_read(file: Path, experiment: str) -> Path:
    """Return a copy of the database, for a folder that cannot be written; it exists until the process ends.

    Raises:
        SpaceError: there is no database.
    """
    if not file.is_file():
        raise SpaceError(f"{file.parent}: has no MLflow store, and none can be written there; set VLMFLOW_HOME")
    folder = Path(tempfile.mkdtemp(prefix="vlmflow-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = Path(shutil.copyfile(file, folder / FILE))
    _follow_move(copy, artifacts(file), experiment)
    return copy


def _create(file: Path, experiment: str) -> None:
    """Create the database under another name first: one that is interrupted could not be used any more."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = file.with_name(f"{file.name}.partial")
    for left in file.parent.glob(f"{partial.name}*"):
        left.unlink()
    store = SqlAlchemyStore(address(partial), artifacts(file))
    store.create_experiment(experiment, artifact_location=artifacts(file))
    store.engine.dispose()
    partial.replace(file)


def _follow_move(database: Path, artifacts: str, experiment: str) -> None:
    """Replace the addresses of the artifacts if the folder was moved or copied since they were written."""
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        found = connection.execute("select artifact_location from experiments where name = ?", (experiment,)).fetchone()
        if found is None or found[0] == artifacts or not found[0].startswith("file:"):
            return
        old = found[0]
        for table, column in _ADDRESSES.items():
            connection.execute(
                f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                (artifacts, len(old) + 1, len(old) + 1, f"{old}/"),
            )
        connection.execute("update experiments set artifact_location = ? where artifact_location = ?", (artifacts, old))


def _plain_path(folder: Path) -> Path:
    """Return `folder`, or a link to it if its path has characters that SQLAlchemy decodes, such as `%` and `?`."""
    if _PLAIN.fullmatch(str(folder)):
        return folder
    place = Path(tempfile.gettempdir())
    name = f"vlmflow-{os.getuid()}-{cache_key(folder=str(folder))[:12]}"
    link = (place if _PLAIN.fullmatch(str(place)) else Path("/tmp")) / name
    if not link.is_symlink():
        link.symlink_to(folder)
    if link.lstat().st_uid != os.getuid() or link.readlink() != folder:
        raise SpaceError(f"{link}: is not this user's link to {folder}; remove it, or give VLMFLOW_HOME a plain name")
    return link
