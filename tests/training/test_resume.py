"""A training that is killed is run again, and ends as if it had not been."""

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
from vlmflow.errors import RecipeError
from vlmflow.runtime.code_hash import ROOT
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
# 48 rows are 6 steps of 8: the checkpoint of step 8 is of the second epoch.
TRAINING = {"max_steps": 11, "batch_size": 8, "warmup_steps": 0, "save_every": 4}
# What a step's process does, but that one of its training processes dies at `at`.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from vlmflow.config import recipes
from vlmflow.training import checkpointing, progress
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.training import pretrain
from vlmflow.runtime.process import configure_logging

pairs, out, given, at = sys.argv[1:]
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
section = recipes.load(PretrainConfig, {"pretrain": json.loads(given)}, "pretrain")
pretrain(pairs=Path(pairs), conversations=None, out=Path(out), section=section)
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pictures of two halves, each in a colour."""
    folder, rows = tmp_path_factory.mktemp("pairs"), []
    for i in range(48):
        one, other = (list(COLOURS)[j] for j in (i % 4, i // 4 % 4))
        picture = Image.new("RGB", (16, 16), COLOURS[one])
        picture.paste(COLOURS[other], (8, 0, 16, 16))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        row = {"image": buffer.getvalue(), "caption": f"{one} left of {other}", "width": 16, "height": 16}
        more = {"source": "", "licence": "", "split": "train", "label": "", "regions": [], "lines": []}
        rows.append({**row, **more, "uid": str(i)})
    dataset.write(folder, "pairs", rows)
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The volume of the checkpoints."""
    monkeypatch.setenv("VLMFLOW_CHECKPOINTS", str(tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


def given(**training: Any) -> dict[str, Any]:
    return {**SECTION, "training": {**TRAINING, **training}}


def trained(pairs: Path, out: Path, values: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The weights and the curve."""
    section = recipes.load(PretrainConfig, {"pretrain": values}, "pretrain")
    pretrain(pairs=pairs, conversations=None, out=out, section=section)
    return load_file(out / "model.safetensors"), json.loads((out / "card.json").read_text())["curve"]


def killed(pairs: Path, out: Path, values: dict[str, Any], at: str) -> str:
    """Train until one process dies; returns what was logged."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(pairs), str(out), json.dumps(values), at]
    died = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    # Of several processes the group's end is told by whichever noticed first: the one that was killed, or its peer.
    told = ("SIGKILL", "Connection closed by peer", "Connection reset by peer")
    assert died.returncode == -signal.SIGKILL or any(why in died.stderr for why in told), died.stderr[-3000:]
    assert not out.exists()
    return died.stderr


def checkpoints(place: Path) -> set[str]:
    return {path.name for path in place.glob("*/checkpoint-*")}


def same(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    assert one[0].keys() == other[0].keys()
    for name, tensor in one[0].items():
        torch.testing.assert_close(other[0][name], tensor, atol=0, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    assert one[1] == other[1]


@pytest.fixture(scope="module")
def reference(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """One process that nothing happens to."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMFLOW_CHECKPOINTS", str(folder / "checkpoints"))
        found = trained(pairs, folder / "model", given())
        assert not checkpoints(folder / "checkpoints"), "nothing is left of a training that ended well"
    return found


@pytest.mark.parametrize(("at", "found", "step"), [("after 9", {4, 8}, 8), ("saving 8", {4, 8}, 4)])
def test_a_killed_training_goes_on_and_learns_the_same(
    pairs: Path,
    reference: tuple[Any, Any],
    place: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    at: str,
    found: set[int],
    step: int,
) -> None:
    killed(pairs, tmp_path / "model", given(), at)
    assert checkpoints(place) == {f"checkpoint-{one}" for one in found}
    with caplog.at_level(logging.INFO):
        same(reference, trained(pairs, tmp_path / "model", given()))
    assert f"resuming from step {step} of" in caplog.text
    assert ("incomplete" in caplog.text) == (step == 4)
    assert not checkpoints(place)


def test_two_processes_of_which_one_dies(
    pairs: Path,
    place: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    apart: Callable[..., Any],
) -> None:
    values = given(processes=2)
    killed(pairs, tmp_path / "model", values, "after 9")
    assert checkpoints(place) == {"checkpoint-4", "checkpoint-8"}
    resumed = apart(trained, pairs, tmp_path / "model", values)
    logged, told = capfd.readouterr()
    assert "resuming from step 8" in told, told
    assert "'epoch': '1.5'" in logged and "'epoch': '1.333'" not in logged, "step 9 was the first"
    monkeypatch.setenv("VLMFLOW_CHECKPOINTS", str(tmp_path / "others"))
    same(apart(trained, pairs, tmp_path / "again", values), resumed)


def test_another_training_does_not_go_on_from_it(pairs: Path, place: Path, tmp_path: Path, caplog: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlmflow.artifacts.checkpoint.save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained(pairs, tmp_path / "model", given())
    assert checkpoints(place) == {"checkpoint-4", "checkpoint-8"}
    with caplog.at_level(logging.INFO):
        trained(pairs, tmp_path / "other", given(learning_rate=0.1))
    assert "resuming" not in caplog.text
    assert checkpoints(place) == {"checkpoint-4", "checkpoint-8"}, "the other's are left to it"


def test_without_save_every_nothing_is_kept(pairs: Path, place: Path, tmp_path: Path) -> None:
    trained(pairs, tmp_path / "model", given(save_every=None, max_steps=2))
    assert not place.exists()


def test_a_checkpoint_is_whole_when_all_its_files_are(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"12345")
    assert not is_complete(tmp_path)
    (tmp_path / MARKER).write_text(json.dumps({"weights": 5}))
    assert is_complete(tmp_path)
    (tmp_path / "weights").write_bytes(b"123")
    assert not is_complete(tmp_path)
    (tmp_path / "weights").unlink()
    assert not is_complete(tmp_path)


def test_draws_are_those_of_the_batch_and_of_the_process() -> None:
    one, other, third = (SeededCollator(lambda rows: torch.rand(rows), seed=3) for _ in range(3))
    first = [one(4) for _ in range(3)]
    before = torch.get_rng_state()
    other.batch_index = 2
    assert torch.equal(other(4), first[2]) and not torch.equal(first[1], first[2])
    assert torch.equal(torch.get_rng_state(), before), "the model's own draws are not touched"
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
def test_what_cannot_be_kept(training: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.load(PretrainConfig, {"pretrain": given(**training)}, "pretrain")
