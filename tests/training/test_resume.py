"""Resuming: a training run that was killed ends with the same weights as an uninterrupted one."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vlmflow.artifacts import dataset
from vlmflow.config import recipes
from vlmflow.errors import RecipeError, ServiceError
from vlmflow.runtime.code_hash import ROOT
from vlmflow.training import checkpointing
from vlmflow.training.checkpointing import MARKER, SeededCollator, is_complete
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.training import pretrain

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 160, 30), "grey": (120, 120, 120)}
SECTION: dict[str, Any] = {
    "family": "clip",
    "model": {
        "image_size": 16, "patch_size": 4, "vision_hidden_size": 16, "vision_layers": 1, "text_hidden_size": 16,
        "text_layers": 1, "projection_dim": 8, "head_dim": 8, "text_length": 12,
    },
    "augment": {}, "patch_dropout": 0.25, "ema": 0.5,
}  # fmt: skip
# 48 rows are 6 steps of 8, so the checkpoint of step 8 is in the second epoch.
TRAINING = {"max_steps": 11, "batch_size": 8, "warmup_steps": 0, "save_every": 4}
# A step's process, whose last training process kills itself at `at`: "after STEP" or "saving STEP".
KILLED = """
import json, os, signal, sys
from pathlib import Path
from vlmflow.config import recipes
from vlmflow.training import checkpointing, progress
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.training import pretrain
from vlmflow.runtime.process import configure_logging

pairs, out, values, at = sys.argv[1:]
moment, step = at.split()

def dying(method):
    def die(self, args, state, control, **more):
        if state.global_step == int(step) and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, args, state, control, **more)
    return die

if moment == "after":
    progress.Progress.on_step_end = dying(progress.Progress.on_step_end)
else:
    checkpointing.SaveCallback.on_save = dying(checkpointing.SaveCallback.on_save)
configure_logging()
section = recipes.load(PretrainConfig, {"pretrain": json.loads(values)}, "pretrain")
pretrain(pairs=Path(pairs), conversations=None, out=Path(out), section=section)
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images, each with a left and a right half of one colour."""
    folder, rows = tmp_path_factory.mktemp("pairs"), []
    for i in range(48):
        one, other = (list(COLOURS)[j] for j in (i % 4, i // 4 % 4))
        image = Image.new("RGB", (16, 16), COLOURS[one])
        image.paste(COLOURS[other], (8, 0, 16, 16))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        row = {"image": buffer.getvalue(), "caption": f"{one} left of {other}", "width": 16, "height": 16}
        more = {"source": "", "licence": "", "split": "train", "label": "", "regions": [], "lines": []}
        rows.append({**row, **more, "uid": str(i)})
    dataset.write(folder, "pairs", rows)
    return folder


@pytest.fixture(autouse=True)
def checkpoint_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all checkpoints: on the shared volume of a step's pod, with the placement as it is shipped."""
    monkeypatch.delenv("VLMFLOW_CHECKPOINTS", raising=False)
    monkeypatch.delenv("VLMFLOW_HOME", raising=False)
    monkeypatch.setenv("VLMFLOW_KFP_RUN", "run-1")
    monkeypatch.setenv("VLMFLOW_SHARED", str(tmp_path))
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"VLMFLOW_CHECKPOINTS": "/own", "VLMFLOW_SHARED": "volume"}, "/own"),
        ({"VLMFLOW_SHARED": "volume"}, "volume/checkpoints"),
        ({"VLMFLOW_SHARED": "volume", "VLMFLOW_KFP_RUN": "run-1"}, "volume/checkpoints"),
        ({"VLMFLOW_HOME": "home"}, "home/.checkpoints"),
        ({"VLMFLOW_HOME": "home", "VLMFLOW_KFP_RUN": "run-1"}, "home/.checkpoints"),
        ({}, "runs/.checkpoints"),
    ],
)
def test_the_folder_of_the_checkpoints(
    environment: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(environment, tmp_path, monkeypatch)
    assert checkpointing.checkpoint_root().resolve() == tmp_path / expected


@pytest.mark.parametrize("environment", [{}, {"VLMFLOW_SHARED": "not-mounted"}])
def test_checkpoints_that_would_be_lost_with_a_pod_are_an_error(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment({**environment, "VLMFLOW_KFP_RUN": "run-1"}, tmp_path, monkeypatch)
    with pytest.raises(ServiceError, match=r"^training.save_every: .*lost with this pod; mount .*datasets: /data"):
        checkpointing.checkpoint_root()


def set_environment(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set only these variables; the folder `volume` exists."""
    (tmp_path / "volume").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("VLMFLOW_CHECKPOINTS", "VLMFLOW_SHARED", "VLMFLOW_HOME", "VLMFLOW_KFP_RUN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def section_values(**training: Any) -> dict[str, Any]:
    return {**SECTION, "training": {**TRAINING, **training}}


def train(pairs: Path, out: Path, values: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Pretrain and return the weights and the loss curve."""
    section = recipes.load(PretrainConfig, {"pretrain": values}, "pretrain")
    pretrain(pairs=pairs, conversations=None, out=out, section=section)
    return load_file(out / "model.safetensors"), json.loads((out / "card.json").read_text())["curve"]


def train_until_killed(pairs: Path, out: Path, values: dict[str, Any], at: str) -> str:
    """Train until one process kills itself; return the log."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(pairs), str(out), json.dumps(values), at]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    # With several processes, the error is that of the first failure seen: the killed process, or a peer that lost it.
    expected = ("SIGKILL", "Connection closed by peer", "Connection reset by peer")
    log = process.stderr
    assert process.returncode == -signal.SIGKILL or any(message in log for message in expected), log[-3000:]
    assert not out.exists()
    return log


def checkpoints(checkpoint_root: Path) -> set[str]:
    return {path.name for path in checkpoint_root.glob("*/checkpoint-*")}


def assert_same(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    assert one[0].keys() == other[0].keys()
    for name, tensor in one[0].items():
        torch.testing.assert_close(other[0][name], tensor, atol=0, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    assert one[1] == other[1]


@pytest.fixture(scope="module")
def reference(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Weights and curve of an uninterrupted run with one process."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMFLOW_CHECKPOINTS", str(folder / "checkpoints"))
        result = train(pairs, folder / "model", section_values())
        assert not checkpoints(folder / "checkpoints"), "checkpoints are deleted after a completed run"
    return result


@pytest.mark.parametrize(("at", "saved", "step"), [("after 9", {4, 8}, 8), ("saving 8", {4, 8}, 4)])
def test_a_killed_run_resumes_and_gives_the_same_weights(
    pairs: Path,
    reference: tuple[Any, Any],
    checkpoint_root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    at: str,
    saved: set[int],
    step: int,
) -> None:
    train_until_killed(pairs, tmp_path / "model", section_values(), at)
    assert checkpoints(checkpoint_root) == {f"checkpoint-{number}" for number in saved}
    with caplog.at_level(logging.INFO):
        assert_same(reference, train(pairs, tmp_path / "model", section_values()))
    assert f"resuming from step {step} of" in caplog.text
    assert ("incomplete" in caplog.text) == (step == 4)
    assert not checkpoints(checkpoint_root)


@pytest.mark.soak
def test_a_run_of_two_processes_resumes_after_one_is_killed(
    pairs: Path,
    checkpoint_root: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    apart: Callable[..., Any],
) -> None:
    values = section_values(processes=2)
    train_until_killed(pairs, tmp_path / "model", values, "after 9")
    assert checkpoints(checkpoint_root) == {"checkpoint-4", "checkpoint-8"}
    resumed = apart(train, pairs, tmp_path / "model", values)
    logged, errors = capfd.readouterr()
    assert "resuming from step 8" in errors, errors
    assert "'epoch': '1.5'" in logged and "'epoch': '1.333'" not in logged, "the first step after resuming is step 9"
    monkeypatch.setenv("VLMFLOW_CHECKPOINTS", str(tmp_path / "other-checkpoints"))
    assert_same(apart(train, pairs, tmp_path / "again", values), resumed)


def test_a_run_with_other_values_does_not_resume_from_it(
    pairs: Path, checkpoint_root: Path, tmp_path: Path, caplog: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlmflow.artifacts.checkpoint.save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(pairs, tmp_path / "model", section_values())
    assert checkpoints(checkpoint_root) == {"checkpoint-4", "checkpoint-8"}
    with caplog.at_level(logging.INFO):
        train(pairs, tmp_path / "other", section_values(learning_rate=0.1))
    assert "resuming" not in caplog.text
    assert checkpoints(checkpoint_root) == {"checkpoint-4", "checkpoint-8"}, "checkpoints of the other run are kept"


def test_without_save_every_no_checkpoint_is_written(pairs: Path, checkpoint_root: Path, tmp_path: Path) -> None:
    train(pairs, tmp_path / "model", section_values(save_every=None, max_steps=2))
    assert not checkpoint_root.exists()


def test_a_checkpoint_is_complete_if_all_files_have_their_recorded_size(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"12345")
    assert not is_complete(tmp_path)
    (tmp_path / MARKER).write_text(json.dumps({"weights": 5}))
    assert is_complete(tmp_path)
    (tmp_path / "weights").write_bytes(b"123")
    assert not is_complete(tmp_path)
    (tmp_path / "weights").unlink()
    assert not is_complete(tmp_path)


def test_random_numbers_depend_on_the_batch_index_and_the_process() -> None:
    one, other, third = (SeededCollator(lambda rows: torch.rand(rows), seed=3) for _ in range(3))
    first = [one(4) for _ in range(3)]
    before = torch.get_rng_state()
    other.batch_index = 2
    assert torch.equal(other(4), first[2]) and not torch.equal(first[1], first[2])
    assert torch.equal(torch.get_rng_state(), before), "the global random state is unchanged"
    third.process = 1
    assert not torch.equal(third(4), first[0])


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"save_every": 0}, "save_every: must be at least 1"),
        ({"max_steps": 100, "seconds": 5.0}, "save_every needs max_steps"),
        ({"trainer": {"dataloader_num_workers": 2}}, "dataloader_num_workers"),
    ],
)
def test_settings_that_cannot_be_checkpointed_are_rejected(training: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.load(PretrainConfig, {"pretrain": section_values(**training)}, "pretrain")
