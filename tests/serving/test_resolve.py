"""Resolving a model reference to a checkpoint folder, and the check of the port."""

import ast
import json
import shutil
import socket
from pathlib import Path

import pytest

from vlmflow.errors import ModelError, ServiceError
from vlmflow.inference import loading
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


def test_code_in_a_checkpoint_is_never_run(chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if someone, or `yes |`, would confirm it."""
    folder = shutil.copytree(chat_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Strange", "AutoModel": "code.Strange"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "card.json").unlink()
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import Strange")
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    with pytest.raises(ModelError, match="needs code of its own, which is never run"):
        loading.load(folder)
    assert not (tmp_path / "ran").exists()


def test_every_load_from_transformers_refuses_code_of_the_checkpoint() -> None:
    root, calls = Path(__file__).parents[2], []
    for package in ("models", "vlmflow", "components", "pipelines", "benchmarks"):
        for file in (root / package).rglob("*.py"):
            calls += [
                (file.name, {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords})
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained"
            ]
    assert calls and not [name for name, given in calls if given.get("trust_remote_code") != "False"]
