"""A checkpoint gives a model all its weights, or is refused: when it is loaded, and when a training resumes from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from models.tiny.build import build_language_model
from vlmflow.artifacts import checkpoint
from vlmflow.artifacts.checkpoint import load_weights
from vlmflow.errors import ModelError
from vlmflow.inference.loading import load
from vlmflow.training.arguments import trainer_arguments
from vlmflow.training.checkpointing import open_checkpoints
from vlmflow.training.config import TrainingConfig

TEXT: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip


def llava() -> nn.Module:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT)))


def qwen() -> nn.Module:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    text = {**TEXT, "rope_parameters": rope}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


class StopBeforeTheSecondStep(TrainerCallback):
    """Keeps the weights with which the second step begins, and ends the training there."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 1:
            self.weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
            raise KeyboardInterrupt


def weights_before_the_second_step(build: Callable[[], nn.Module], seed: int) -> dict[str, torch.Tensor]:
    """Train to the second step, from the checkpoint of the first one if there is one."""
    torch.manual_seed(seed)
    training = TrainingConfig(max_steps=3, batch_size=2, warmup_steps=0, save_every=1, optimizer="adamw")
    stop, ids = StopBeforeTheSecondStep(), torch.arange(8, 16)
    with pytest.raises(KeyboardInterrupt), open_checkpoints(training, step="caption") as checkpoints:
        trainer = Trainer(
            model=build(),  # type: ignore[arg-type]
            args=TrainingArguments(**trainer_arguments(training, checkpoints.folder)),
            train_dataset=[{"input_ids": ids, "labels": ids}] * 8,  # type: ignore[arg-type]
            callbacks=[stop, *checkpoints.callbacks],
        )
        checkpoints.train(trainer)
    return stop.weights


@pytest.mark.parametrize("build", [llava, qwen])
def test_a_resumed_training_has_all_the_weights_of_its_checkpoint(
    build: Callable[[], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMFLOW_CHECKPOINTS", str(tmp_path))
    before = weights_before_the_second_step(build, seed=0)
    resumed = weights_before_the_second_step(build, seed=1)
    assert before.keys() == resumed.keys()
    assert not [name for name in before if not torch.equal(before[name], resumed[name])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.norm.weight"), r"1 weight is missing \(model.norm.weight\)"),
        (lambda weights: weights.update(extra=torch.zeros(2)), r"1 weight is unknown \(extra\)"),
    ],
)
def test_a_checkpoint_with_missing_or_unknown_weights_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    sizes = {"num_hidden_layers": 1, "vision_layers": 1, "text_layers": 1}
    model, processor = build_language_model(["a red circle"] * 3, **sizes)
    checkpoint.save(tmp_path, model, processor, family="tiny-vlm")
    load(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for attempt in (lambda: load(tmp_path), lambda: load_weights(type(model), tmp_path)):
        with pytest.raises(ModelError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
