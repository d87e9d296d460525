"""FSDP2: two processes that shard a model get the same weights as two processes with full copies."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from vlmflow.artifacts import dataset
from vlmflow.config import recipes
from vlmflow.errors import RecipeError
from vlmflow.runtime.code_hash import ROOT
from vlmflow.training.checkpointing import is_complete
from vlmflow.training.launcher import launch
from vlmflow.training.pretraining.collator import PretrainCollator
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.training import build_or_load, corpus, fit, train
from vlmflow.training.progress import Progress

FAMILIES = sorted(path.stem for path in (ROOT / "recipes" / "zoo").glob("*.yaml") if path.stem != "energy")
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 160, 30), "grey": (120, 120, 120)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 images, each with a left and a right half of one colour."""
    folder, rows = tmp_path_factory.mktemp("pairs"), []
    for i in range(32):
        one, other = (list(COLOURS)[j] for j in (i % 4, i // 4 % 4))
        image = Image.new("RGB", (64, 64), COLOURS[one])
        image.paste(COLOURS[other], (32, 0, 64, 64))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        row = {"image": buffer.getvalue(), "caption": f"{one} left of {other}", "width": 64, "height": 64}
        more = {"source": "", "licence": "", "split": "train", "label": "", "regions": [], "lines": []}
        rows.append({**row, **more, "uid": str(i)})
    dataset.write(folder, "pairs", rows)
    return folder


def section(
    family: str, sharding: str, processes: int = 2, optimizer: str = "sgd", ema: float | None = None, **more: Any
) -> PretrainConfig:
    """Load the family's small recipe. SGD exposes gradient magnitudes; Adam would show little but signs."""
    sections = yaml.safe_load((ROOT / f"recipes/zoo/{family}.yaml").read_text())
    sizes = {**sections["pretrain"].get("model", {})}
    kind: Any = {"optimizer": "adamw", "trainer": {"optim": "sgd"}} if optimizer == "sgd" else {"optimizer": optimizer}
    training = {"max_steps": 3, "batch_size": 8, "warmup_steps": 0, "learning_rate": 0.01, "processes": processes}
    values = {"family": family, "model": sizes, "training": {**training, **kind, "sharding": sharding, **more}}
    if ema is not None:
        values["ema"] = ema
    return recipes.load(PretrainConfig, {"pretrain": values}, "pretrain")


def _train_families(folder: str, pairs: str, sharding: str) -> None:
    """In each process: train every family; the process that holds the gathered weights writes them to `folder`."""
    table = dataset.Dataset(pairs).table(["image", "caption"]).to_pylist()
    for family in FAMILIES:
        config = section(family, sharding)
        torch.manual_seed(0)
        model, processor = build_or_load(config, corpus(Path(pairs), None))
        collator = PretrainCollator(model, processor, config)
        rows = collator.make_rows([row["image"]["bytes"] for row in table], [row["caption"] for row in table])
        writes, gathered = fit(model, config.training, [], rows=rows, collator=collator, section=config)
        if writes:
            state = {k: v.clone().contiguous() for k, v in (gathered or model.state_dict()).items()}
            save_file(state, Path(folder) / f"{family}-{sharding}.safetensors")


@pytest.fixture(scope="module")
def weights(pairs: Path, tmp_path_factory: pytest.TempPathFactory, apart: Callable[..., Any]) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for sharding in ("none", "fsdp"):
        apart(launch, _train_families, 2, str(folder), str(pairs), sharding)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_family_gets_the_same_weights(weights: Path, family: str) -> None:
    full, sharded = (load_file(weights / f"{family}-{sharding}.safetensors") for sharding in ("none", "fsdp"))
    assert sharded.keys() <= full.keys()  # tied weights are gathered once
    for name, tensor in sharded.items():
        torch.testing.assert_close(tensor, full[name], atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def _train_with_interrupt(folder: str, pairs: str, at: int) -> None:
    """Train with Muon and EMA, and raise after step `at`; 0 never raises."""

    def interrupt(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == at:
            raise InterruptedError

    Progress.on_step_end = interrupt  # affects this process only, which is forked for one run
    config = section("clip", "fsdp", optimizer="muon", ema=0.5, save_every=2, max_steps=5)
    train(Path(pairs), corpus(Path(pairs), None), config, Path(folder))


@pytest.mark.soak
def test_an_interrupted_sharded_run_resumes_and_gives_the_same_weights(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: Callable[..., Any]
) -> None:
    monkeypatch.setenv("VLMFLOW_CHECKPOINTS", str(tmp_path / "checkpoints"))
    apart(launch, _train_with_interrupt, 2, str(tmp_path / "whole"), str(pairs), 0)
    with pytest.raises(RuntimeError, match="exitcode"):
        apart(launch, _train_with_interrupt, 2, str(tmp_path / "again"), str(pairs), 3)
    [checkpoint] = tmp_path.glob("checkpoints/*/checkpoint-2")
    assert is_complete(checkpoint)
    apart(launch, _train_with_interrupt, 2, str(tmp_path / "again"), str(pairs), 0)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[part], other[part]) for part in one)
    assert not list(tmp_path.glob("checkpoints/*"))
    plain = section("clip", "none", processes=1, optimizer="muon", ema=0.5, max_steps=5)
    train(pairs, corpus(pairs, None), plain, tmp_path / "alone")
    alone = load_file(tmp_path / "alone" / "model.safetensors")
    for part, tensor in alone.items():
        torch.testing.assert_close(one[part], tensor, atol=2e-3, rtol=0, msg=lambda text, n=part: f"{n}: {text}")


def test_a_family_that_takes_gradients_in_its_forward_pass_is_rejected(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"pretrain.training.sharding: 'fsdp': the family 'energy' takes gradients"):
        train(pairs, corpus(pairs, None), section("energy", "fsdp"), tmp_path / "model")
