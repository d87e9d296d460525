"""Options of pretraining: their effects, and the error of a family that does not support one."""

import io
import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from vlmflow.artifacts import dataset
from vlmflow.config import recipes
from vlmflow.errors import RecipeError
from vlmflow.training.config import TrainingConfig
from vlmflow.training.launcher import launch
from vlmflow.training.pretraining.callbacks import EMACallback
from vlmflow.training.pretraining.collator import PretrainCollator
from vlmflow.training.pretraining.config import AugmentConfig, PretrainConfig
from vlmflow.training.pretraining.hard_negative_sampler import HardNegativeSampler
from vlmflow.training.pretraining.training import build_or_load, check_options, corpus, fit, pretrain

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 160, 30), "grey": (120, 120, 120)}
SIZES = {
    "image_size": 16, "patch_size": 4, "vision_hidden_size": 16, "vision_layers": 1, "text_hidden_size": 16,
    "text_layers": 1,
    "projection_dim": 8, "head_dim": 8, "text_length": 12,
}  # fmt: skip


def section(family: str = "clip", **options: Any) -> PretrainConfig:
    training = TrainingConfig(**{"max_steps": 3, "batch_size": 8, "warmup_steps": 0, **options.pop("training", {})})
    return PretrainConfig(family=family, model=options.pop("model", SIZES), training=training, **options)


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
        row = {
            "image": buffer.getvalue(),
            "caption": f"{one} left of {other}",
            "width": 16,
            "height": 16,
            "uid": str(i),
        }
        rows.append({**row, "source": "", "licence": "", "split": "train", "label": "", "regions": [], "lines": []})
    dataset.write(folder, "pairs", rows)
    return folder


def prepare(pairs: Path, config: PretrainConfig) -> tuple[Any, PretrainCollator, list[dict[str, Any]]]:
    table = dataset.Dataset(pairs).table(["image", "caption"]).to_pylist()
    """Return the model, its collator and the training rows."""
    model, processor = build_or_load(config, corpus(pairs, None))
    collator = PretrainCollator(model, processor, config)
    check_options(config, model, collator)
    rows = collator.make_rows([row["image"]["bytes"] for row in table], [row["caption"] for row in table])
    collator.fit_negatives(rows)
    return model, collator, rows


def pretrain_weights(pairs: Path, out: Path, config: PretrainConfig) -> dict[str, torch.Tensor]:
    """Pretrain and return the weights."""
    pretrain(pairs=pairs, conversations=None, out=out, section=config)
    return load_file(out / "model.safetensors")


class WeightRecorder(TrainerCallback):
    """Keep a copy of the weights after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.weights.append(deepcopy(model.state_dict()))


def test_the_logit_scale_is_clamped_after_every_step(pairs: Path, tmp_path: Path) -> None:
    free = pretrain_weights(pairs, tmp_path / "free", section())
    bound = pretrain_weights(pairs, tmp_path / "bound", section(max_logit_scale=5.0))
    assert free["logit_scale"] > math.log(5)
    assert bound["logit_scale"] == pytest.approx(math.log(5), abs=0.01)
    assert bound["logit_scale"] <= math.log(5) + 1e-6


def test_the_final_weights_are_the_closed_form_of_the_moving_average(pairs: Path) -> None:
    config = section(ema=0.7, training={"max_steps": 4, "learning_rate": 0.05})
    model, collator, rows = prepare(pairs, config)
    recorder = WeightRecorder()
    fit(model, config.training, [recorder], rows=rows, collator=collator, section=config)
    for name, average in model.state_dict().items():
        if not average.is_floating_point():
            continue
        one, two, three, four = (weights[name] for weights in recorder.weights)
        # The average starts at the weights after the first step.
        expected = 0.7**3 * one + 0.3 * (0.7**2 * two + 0.7 * three + four)
        torch.testing.assert_close(average, expected, atol=1e-6, rtol=1e-5)
    difference = (model.logit_scale - recorder.weights[-1]["logit_scale"]).abs()
    assert difference > 1e-4, "the average is not the last step's weights"


def test_without_a_step_the_average_leaves_the_initial_weights() -> None:
    model, average = nn.Linear(2, 2), EMACallback(0.9)
    start = deepcopy(model.state_dict())
    average.on_train_begin(None, None, None, model=model)  # type: ignore[arg-type]
    average.on_train_end(None, None, None, model=model)  # type: ignore[arg-type]
    assert all(torch.equal(start[name], value) for name, value in model.state_dict().items())


def test_images_are_augmented_only_if_the_config_sets_it(pairs: Path) -> None:
    _, plain, rows = prepare(pairs, section())
    _, augmenting, _ = prepare(pairs, section(augment=AugmentConfig(area=(0.3, 0.6))))
    assert torch.equal(plain(rows[:8])["pixel_values"], plain(rows[:8])["pixel_values"])
    assert set(plain(rows[:8])) == {"pixel_values", "input_ids", "attention_mask", "caption_ids"}
    one, other = augmenting(rows[:8]), augmenting(rows[:8])
    assert not torch.equal(one["pixel_values"], other["pixel_values"])
    assert torch.equal(one["input_ids"], other["input_ids"])
    spread = one["pixel_values"].std() / plain(rows[:8])["pixel_values"].std()
    assert 0.7 < spread < 1.3, "still normalised"


def test_a_model_with_slip_loss_gets_two_views_per_image(pairs: Path) -> None:
    config = section(model={**SIZES, "slip_weight": 1.0, "slip_hidden_size": 16, "slip_projection_dim": 8})
    model, collator, rows = prepare(pairs, config)
    torch.manual_seed(0)
    batch = collator(rows[:8])
    assert batch["views"].shape == (8, 2, 3, 16, 16)
    assert not torch.equal(batch["views"][:, 0], batch["views"][:, 1])
    out = model(**batch)
    assert torch.isfinite(out.loss) and "views" in out.parts
    changed = model(**{**batch, "views": batch["views"].flip(0) * 0.5})
    assert out.parts["views"] != changed.parts["views"], "the loss depends on the views of the batch"


def test_negative_captions_are_in_the_batch_and_add_to_the_loss(pairs: Path, tmp_path: Path) -> None:
    config = section(negatives=2)
    model, collator, rows = prepare(pairs, config)
    batch = collator(rows[:8])
    decoded = collator.tokenizer.batch_decode(batch["negative_input_ids"], skip_special_tokens=True)
    captions = [text.replace("<start>", "").replace("<end>", "").strip() for text in decoded]
    assert len(captions) == len(batch["negative_attention_mask"]) == 16
    for i, negative in enumerate(captions):
        assert negative != rows[i // 2]["caption"] and len(negative.split()) == 4, negative
    without = {name: tensor for name, tensor in batch.items() if not name.startswith("negative")}
    assert model(**batch).loss > model(**without).loss, "the loss has more candidates"
    pretrain_weights(pairs, tmp_path, section(negatives=1, shuffle_pairs=True))


def test_patches_are_dropped_in_training_only(pairs: Path) -> None:
    config = section(patch_dropout=0.5)
    model, collator, rows = prepare(pairs, config)
    lengths: list[int] = []
    model.vision_model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs.get("inputs_embeds", args[0] if args else None).shape[1]),
        with_kwargs=True,
    )
    fit(model, config.training, [], rows=rows, collator=collator, section=config)
    with torch.no_grad():
        model.eval()(**collator(rows[:8]))
    assert lengths == [1 + 8] * 3 + [1 + 16]


def _record_captions(folder: str, pairs: str) -> None:
    """In each process: train, and write the captions of its batches and of all rows."""
    config = section(hard_negative_fraction=0.5, training={"processes": 2})
    model, collator, rows = prepare(Path(pairs), config)
    recorded, collate = [], collator.__class__.__call__

    class Recording(PretrainCollator):
        def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            recorded.append([row["caption"] for row in rows])
            return collate(self, rows)

    collator.__class__ = Recording
    fit(model, config.training, [], rows=rows, collator=collator, section=config)
    rank = torch.distributed.get_rank()
    (Path(folder) / f"{rank}.json").write_text(json.dumps([recorded, [row["caption"] for row in rows]]))
    torch.distributed.destroy_process_group()


def test_two_processes_split_the_batches_of_similar_captions(
    pairs: Path, tmp_path: Path, apart: Callable[..., Any]
) -> None:
    apart(launch, _record_captions, 2, str(tmp_path), str(pairs))
    (one, captions), (other, _) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    order = [captions[i] for i in HardNegativeSampler(captions, 8, 0.5, 0)]
    for step in range(3):
        assert one[step] + other[step] == order[8 * step : 8 * (step + 1)]


def test_a_budget_in_seconds_is_used_up_and_the_schedule_ends(pairs: Path, tmp_path: Path) -> None:
    import time

    config = section(training={"max_steps": TrainingConfig().max_steps, "seconds": 3.0, "warmup_steps": 2})
    start = time.process_time()
    pretrain_weights(pairs, tmp_path, config)
    spent = time.process_time() - start
    assert 1.5 < spent < 5.0
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["recipe"]["training"]["seconds"] == 3.0
    last = card["curve"][-1]
    assert last["step"] > 10 and last["learning_rate"] < 0.1 * config.training.learning_rate


def test_invalid_values_are_rejected() -> None:
    for invalid in (
        {"negatives": -1}, {"hard_negative_fraction": 1.5}, {"max_logit_scale": 0.5}, {"ema": 1}, {"patch_dropout": 1},
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=next(iter(invalid))):
            recipes.load(PretrainConfig, {"pretrain": invalid}, "pretrain")
    with pytest.raises(ValueError, match="two budgets"):
        TrainingConfig(max_steps=7, seconds=3)
    with pytest.raises(ValueError, match="seconds"):
        TrainingConfig(seconds=0)


def test_an_option_that_the_family_does_not_support_is_rejected(pairs: Path) -> None:
    tiny: dict[str, Any] = {"family": "tiny-dual-encoder", "model": {}}
    mae_sizes = {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 16,
        "layers": 1,
        "head_dim": 8,
        "decoder_hidden_size": 32,
    }
    for config, message in (
        (section(**tiny, negatives=1), "takes no negative captions"),
        (section(views=recipes.load(PretrainConfig, {"p": {"views": {}}}, "p").views), "slip_weight"),
        (section(family="mae", model=mae_sizes, patch_dropout=0.5), "no image tower that supports patch dropout"),
    ):
        with pytest.raises(RecipeError, match=message):
            prepare(pairs, config)
