"""Resolving a model reference to a checkpoint folder, and the check of the port."""

import socket
from pathlib import Path

import pytest

from vlmflow.errors import ModelError, ServiceError
from vlmflow.serving.resolve import resolve
from vlmflow.serving.server import serve


def test_a_checkpoint_a_run_and_a_registered_version_are_resolved(tmp_path: Path) -> None:
    for folder in ("plain", "run/gate/chosen", "version/artifacts/model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    assert resolve(tmp_path / "plain").samefile(tmp_path / "plain")
    assert resolve(tmp_path / "run").samefile(tmp_path / "run/gate/chosen")
    assert resolve(tmp_path / "version").samefile(tmp_path / "version/artifacts/model")


def test_a_folder_without_a_checkpoint_lists_those_below(tmp_path: Path) -> None:
    (tmp_path / "pretrain/model").mkdir(parents=True)
    (tmp_path / "pretrain/model/config.json").write_text("{}")
    with pytest.raises(ModelError, match="checkpoints below it: pretrain/model"):
        resolve(tmp_path)
    with pytest.raises(ModelError, match="no such folder"):
        resolve(tmp_path / "none")


def test_a_port_in_use_is_reported_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} on .*in use.*--port"):
            serve(tmp_path / "no model here", port)
