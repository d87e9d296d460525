"""Fine-tuning and DPO with TRL's trainers: resuming, and sharded training, give the same weights."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from components.align.config import AlignConfig
from components.align.dpo import train_dpo
from models.backbone.idefics3 import build
from models.tiny.build import build_language_model
from vlmflow.artifacts import checkpoint, dataset
from vlmflow.training.config import TrainingConfig
from vlmflow.training.finetuning.config import FineTuneConfig
from vlmflow.training.finetuning.sft import train
from vlmflow.training.launcher import launch
from vlmflow.training.progress import Progress

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 160, 30), "grey": (120, 120, 120)}
QUESTION = "Which colour?"
SMALL = {"num_hidden_layers": 1, "vision_layers": 1, "text_layers": 1, "vision_hidden_size": 24, "text_hidden_size": 24}
STAGES = ("tiny-vlm", "idefics3", "dpo")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL uses names that transformers deprecates


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations and preferences about 16 images of one colour each, and two initial models."""
    folder = tmp_path_factory.mktemp("inputs")
    conversations, preferences = [], []
    for i in range(16):
        colour = list(COLOURS)[i % 4]
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), tuple(max(0, value - i) for value in COLOURS[colour])).save(buffer, "PNG")
        row = {"uid": str(i), "pair": str(i), "images": [buffer.getvalue()], "split": "train"}
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": colour}]
        conversations.append({**row, "messages": messages, "task": "caption"})
        rejected = list(COLOURS)[(i + 1) % 4]
        preferences.append({**row, "prompt": QUESTION, "chosen": colour, "rejected": rejected, "source": "rule"})
    dataset.write(folder / "conversations", "conversations", conversations)
    dataset.write(folder / "preferences", "preferences", preferences)
    texts = [QUESTION, *COLOURS] * 20
    torch.manual_seed(0)
    model, processor = build_language_model(texts, **SMALL)
    checkpoint.save(folder / "tiny-vlm", model, processor, family="tiny-vlm")
    sizes = {
        "image_size": 64,
        "patch_size": 16,
        "vision_hidden_size": 32,
        "vision_layers": 1,
        "hidden_size": 32,
        "layers": 1,
    }
    model, processor = build(texts, **sizes, heads=2)
    checkpoint.save(folder / "idefics3", model, processor, family="idefics3")
    return folder


def run_stage(name: str, inputs: Path, out: Path, **training: Any) -> None:
    """Run one of STAGES, in this process or as a member of a process group."""
    budget = TrainingConfig(**{"max_steps": 8, "batch_size": 4, "warmup_steps": 0, "learning_rate": 0.01, **training})
    if name == "dpo":
        train_dpo(inputs / "tiny-vlm", inputs / "preferences", AlignConfig(training=budget), out)
    else:
        train(inputs / name, inputs / "conversations", FineTuneConfig(task="caption", training=budget), "caption", out)


def read_result(out: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Return the weights and the loss curve."""
    return load_file(out / "model.safetensors"), json.loads((out / "card.json").read_text())["curve"]


@pytest.mark.parametrize("name", STAGES)
def test_an_interrupted_run_resumes_and_gives_the_same_weights(
    name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VLMFLOW_CHECKPOINTS", str(tmp_path / "checkpoints"))

    def interrupt(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt

    run_stage(name, inputs, tmp_path / "whole", save_every=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "on_step_end", interrupt)
        run_stage(name, inputs, tmp_path / "broken", save_every=3)
    assert {path.name for path in tmp_path.glob("checkpoints/*/checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}
    with caplog.at_level("INFO"):
        run_stage(name, inputs, tmp_path / "again", save_every=3)
    assert "resuming from step 6" in caplog.text
    (one, curve), (other, again) = read_result(tmp_path / "whole"), read_result(tmp_path / "again")
    assert one.keys() == other.keys() and all(torch.equal(one[part], other[part]) for part in one)
    assert [point["loss"] for point in curve] == [point["loss"] for point in again]  # TRL restarts its token counts


def _run_sharded(name: str, inputs: str, folder: str, sharding: str) -> None:
    optimizer: Any = {"optimizer": "adamw", "trainer": {"optim": "sgd"}}
    # DPO forbids several processes on one machine: the second is for its control.
    group = "nodes" if name == "dpo" else "processes"
    more = {"max_steps": 3, group: 2, "sharding": sharding}
    run: Callable[..., Any] = run_stage
    run(name, Path(inputs), Path(folder) / sharding, **optimizer, **more)


@pytest.mark.parametrize("name", STAGES)
def test_a_sharded_run_gives_the_same_weights(
    name: str, inputs: Path, tmp_path: Path, apart: Callable[..., Any]
) -> None:
    for sharding in ("none", "fsdp"):
        apart(launch, _run_sharded, 2, name, str(inputs), str(tmp_path), sharding)
    whole, parts = (load_file(tmp_path / sharding / "model.safetensors") for sharding in ("none", "fsdp"))
    assert whole.keys() == parts.keys()
    for part, tensor in whole.items():
        torch.testing.assert_close(parts[part], tensor, atol=1e-6, rtol=1e-4, msg=lambda text, n=part: f"{n}: {text}")
