"""A full disk is one line, whatever library reports it; other errors keep their type."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from vlmflow.errors import DataError, SpaceError
from vlmflow.runtime.space import space_errors


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/data/shard")


def in_rust() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def in_a_chain() -> None:
    try:
        full()
    except OSError as error:
        raise RuntimeError("the worker failed") from error


@pytest.mark.parametrize("fail", [full, in_rust, in_a_chain])
def test_a_full_disk_is_one_line(fail: Callable[[], None], tmp_path: Path) -> None:
    message = "cannot write: .*o space left on device; free space"
    with pytest.raises(SpaceError, match=message) as error, space_errors(tmp_path):
        fail()
    assert "\n" not in str(error.value)


def test_an_unclear_error_on_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: unexpected pos 64 vs 0")

    with pytest.raises(RuntimeError), space_errors(tmp_path / "not" / "there"):
        write()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    with pytest.raises(SpaceError), space_errors(tmp_path / "not" / "there"):
        write()


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(DataError), space_errors(tmp_path):
        raise DataError("no rows")
    with pytest.raises(ValueError, match="a bug"), space_errors(tmp_path):
        raise ValueError("a bug")
