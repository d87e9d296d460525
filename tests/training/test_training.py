"""Parts of training: Muon, the fine-tuning mixture, and process groups that compute the same as one process."""

import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.contrastive.losses import clip_loss
from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset
from vlmflow.errors import DataError
from vlmflow.inference.prompts import DESCRIBE_IMAGE
from vlmflow.training.config import TrainingConfig
from vlmflow.training.finetuning.config import FineTuneConfig
from vlmflow.training.finetuning.examples import select_examples
from vlmflow.training.launcher import launch
from vlmflow.training.muon import Muon, orthogonalize, orthogonalize_shared


def test_orthogonalize_keeps_singular_vectors_and_brings_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 24, 40, generator=generator)
    orthogonal = orthogonalize(matrices)
    singular_values = torch.linalg.svdvals(orthogonal)
    assert singular_values.min() > 0.5 and singular_values.max() < 1.3  # the quintic iteration is approximate by design
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert nn.functional.cosine_similarity(orthogonal.flatten(1), (u @ v).flatten(1)).min() > 0.97
    torch.testing.assert_close(orthogonalize(matrices.mT), orthogonal.mT, atol=1e-5, rtol=1e-4)


def test_muon_learns_and_resumes_from_its_state() -> None:
    def build() -> tuple[nn.Module, Muon]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
        return model, Muon(model, lr=0.02, weight_decay=0.0)

    x, y = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 4

    def run_steps(model: nn.Module, optimizer: Muon, count: int) -> float:
        loss = torch.tensor(0.0)
        for _ in range(count):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    model, optimizer = build()
    first = run_steps(model, optimizer, 1)
    run_steps(model, optimizer, 20)
    saved = deepcopy((model.state_dict(), optimizer.state_dict()))
    end = run_steps(model, optimizer, 20)
    assert end < 0.85 * first
    again, other = build()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert run_steps(again, other, 20) == pytest.approx(end, rel=1e-5)


def test_muon_optimizes_only_the_matrices_of_hidden_layers() -> None:
    from models.tiny import build as tiny

    model, _ = tiny.build_language_model(["a red circle"] * 3)
    optimizer = Muon(model, lr=1e-3, weight_decay=0.0, scale=5.0)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 1e-3]
    names = {id(p): n for n, p in model.named_parameters()}
    hidden = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    others = {names[id(p)] for p in optimizer.param_groups[1]["params"]}
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert hidden | others == trainable and not hidden & others
    assert all(any(part in n for part in ("qkv", "attention_output", "mlp", "connector")) for n in hidden)
    assert any("embed_tokens" in n for n in others) and any("stem" in n for n in others)


def conversation(uid: str, pair: str, task: str, split: str = "train") -> dict:
    question = DESCRIBE_IMAGE if task == "caption" else f"{task}?"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": f"{task} of {pair}"}]
    return {"uid": uid, "pair": pair, "images": [b"x"], "messages": messages, "task": task, "split": split}


def test_the_mixture_has_the_configured_share_of_replay(tmp_path: Path) -> None:
    rows = [conversation(f"g{i}", f"p{i}", "ground") for i in range(30)]
    rows += [conversation(f"o{i}", f"p{i}", "objects") for i in range(30)]
    rows += [conversation(f"c{i}", f"w{i}", "caption") for i in range(100)]
    rows += [conversation("t", "t", "ground", "test"), conversation("r", "q", "ocr")]
    dataset.write(tmp_path, "conversations", rows)
    data = Dataset(tmp_path)
    tuning = FineTuneConfig(task="ground", also=("objects", "caption"), replay=0.25)
    chosen = select_examples(data, tuning)
    main = [e for e in chosen if "ground" in e.tasks]
    assert len(main) == 30 and len(chosen) == 40
    assert all(len(e.turns) == 2 for e in main), "all turns about one image are in one example"
    assert all(e.turns[0][0] == DESCRIBE_IMAGE for e in chosen if "ground" not in e.tasks)
    assert [e.turns for e in select_examples(data, tuning)] == [e.turns for e in chosen]
    with pytest.raises(DataError, match="no training conversation of task 'classify'"):
        select_examples(data, FineTuneConfig(task="classify"))


def test_invalid_budgets_are_rejected() -> None:
    with pytest.raises(ValueError, match="is not a multiple"):
        TrainingConfig(batch_size=33, processes=2)
    with pytest.raises(ValueError, match="learning_rate"):
        TrainingConfig(learning_rate=0)
    with pytest.raises(ValueError, match="muon_scale"):
        TrainingConfig(muon_scale=-1)
    with pytest.raises(ValueError, match="no effect with optimizer adamw"):
        TrainingConfig(optimizer="adamw", muon_scale=2)


def _compute_loss_of_shard(folder: str) -> None:
    """In each process: write the loss and the gradients for its part of the batch."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    image, text = (torch.load(Path(folder) / name, weights_only=True) for name in ("image", "text"))
    shard = slice(rank * len(image) // world, (rank + 1) * len(image) // world)
    image, text = (x[shard].clone().requires_grad_() for x in (image, text))
    loss = clip_loss(image, text, torch.tensor(5.0))
    loss.backward()
    torch.save({"loss": loss.detach(), "image": image.grad, "text": text.grad}, Path(folder) / f"out{rank}")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path: Path, apart: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (nn.functional.normalize(torch.randn(12, 6, generator=generator), dim=-1) for _ in range(2))
    torch.save(image, tmp_path / "image")
    torch.save(text, tmp_path / "text")
    apart(launch, _compute_loss_of_shard, 2, str(tmp_path))
    parts = [torch.load(tmp_path / f"out{rank}", weights_only=True) for rank in range(2)]
    one, other = image.clone().requires_grad_(), text.clone().requires_grad_()
    loss = clip_loss(one, other, torch.tensor(5.0))
    loss.backward()
    assert np.mean([p["loss"] for p in parts]) == pytest.approx(loss.item(), rel=1e-5)
    # DDP averages the gradients of the parameters over the processes.
    torch.testing.assert_close(torch.cat([p["image"] for p in parts]) / 2, one.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.cat([p["text"] for p in parts]) / 2, other.grad, atol=1e-6, rtol=1e-5)


def _orthogonalize_shared(folder: str) -> None:
    """In each process: write its result of the shared orthogonalisation."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    stacks = torch.load(Path(folder) / "stacks", weights_only=True)
    torch.save(orthogonalize_shared(stacks), Path(folder) / f"shared{dist.get_rank()}")
    dist.destroy_process_group()


def test_orthogonalization_shared_by_two_processes_equals_that_of_one(
    tmp_path: Path, apart: Callable[..., Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    stacks = [torch.randn(count, 6, 10, generator=generator) for count in (1, 3, 4)]
    torch.save(stacks, tmp_path / "stacks")
    apart(launch, _orthogonalize_shared, 2, str(tmp_path))
    alone = [orthogonalize(stack) for stack in stacks]
    for rank in range(2):
        for shared, one in zip(torch.load(tmp_path / f"shared{rank}", weights_only=True), alone, strict=True):
            torch.testing.assert_close(shared, one, atol=1e-6, rtol=1e-5)


def _raise_data_error() -> None:
    raise DataError(f"process {os.environ['RANK']}: too little data")


def test_a_workers_error_keeps_its_type_and_message(apart: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="too little data"):
        apart(launch, _raise_data_error, 2)
