"""Fine-tuning and DPO with TRL's trainers: resuming, and sharded training, give the same weights."""

import io
import json
import random
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
from vlmflow.images.decoding import decode
from vlmflow.inference.generation import chat_prompt
from vlmflow.inference.loading import load
from vlmflow.training.config import TrainingConfig
from vlmflow.training.finetuning.config import EarlyStoppingConfig, FineTuneConfig
from vlmflow.training.finetuning.examples import hold_out, select_examples
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


def test_early_stopping_keeps_the_weights_with_the_lowest_held_out_loss(inputs: Path, tmp_path: Path) -> None:
    colours, rows = random.Random(0), []
    for i, row in enumerate(dataset.Dataset(inputs / "conversations").rows()):
        answer = {"role": "assistant", "content": colours.choice(list(COLOURS))}  # nothing that generalises
        rows.append({**row, "uid": str(i), "messages": [row["messages"][0], answer]})
    data = dataset.write(tmp_path / "conversations", "conversations", rows)
    section = FineTuneConfig(
        task="caption",
        training=TrainingConfig(max_steps=60, batch_size=4, warmup_steps=0, learning_rate=0.01),
        early_stopping=EarlyStoppingConfig(every=2, patience=2, holdout=0.25),
    )
    train(inputs / "tiny-vlm", data.path, section, "caption", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    losses = {point["step"]: point["held_out_loss"] for point in card["curve"] if "held_out_loss" in point}
    notes = card["notes"]
    assert (notes["images"], notes["held_out_images"]) == (12, 4)
    assert notes["best_step"] == min(losses, key=losses.__getitem__) == max(losses) - 4 == notes["stopped_at"] - 4 < 56
    loaded = load(tmp_path / "out")
    question = chat_prompt(loaded.processor, QUESTION)
    _, held_out = hold_out(select_examples(data, section), 0.25, seed=0)
    pixels = [decode(example.images[0]) for example in held_out]
    batch = loaded.processor(
        images=[[image] for image in pixels],
        text=[question + example.turns[0][1] + "<eos>" for example in held_out],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    labels = batch["input_ids"].clone()
    labels[:, : len(loaded.tokenizer(question)["input_ids"]) + 15] = -100
    labels[batch["attention_mask"] == 0] = -100
    with torch.no_grad():
        loss = float(loaded.model(**batch, labels=labels).loss)
    assert loss == pytest.approx(losses[notes["best_step"]], rel=1e-3)
