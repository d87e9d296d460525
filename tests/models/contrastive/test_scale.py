"""Gradient caching, patch dropout, models on several processes, and the recipes at the papers' scale."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.contrastive import clip, siglip
from models.contrastive.grad_cache import grad_cache_embed
from models.patch_dropout import PatchDropout, attach
from models.tiny import build as tiny
from models.zoo import ZOO
from vlmflow.config.recipes import load
from vlmflow.runtime.code_hash import ROOT
from vlmflow.training.launcher import launch

TEXTS = ["a red circle", "two green crosses", "a blue star"] * 4
SIZES: dict[str, dict[str, Any]] = {
    "clip": {
        "image_size": 32, "patch_size": 8, "vision_hidden_size": 32, "vision_layers": 1,
        "text_hidden_size": 16, "text_layers": 1,
        "projection_dim": 16, "head_dim": 16, "text_length": 16,
    },
    "siglip": {"image_size": 32, "patch_size": 8, "hidden_size": 32, "layers": 1, "heads": 2, "text_length": 8},
}  # fmt: skip


def build_model(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return ZOO[name].build(TEXTS, **SIZES[name], **options)[0].double()


def batch(count: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, 300, (count, 8), generator=generator)
    return {"pixel_values": torch.randn(count, 3, 32, 32, generator=generator).double(), "input_ids": ids}


def gradients(model: nn.Module, given: dict[str, torch.Tensor], **more: Any) -> dict[str, torch.Tensor]:
    loss = model(**given, **more).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return {"loss": loss.detach(), **found}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-9, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("name", "options"),
    [("clip", {}), ("siglip", {}), ("clip", {"slip_weight": 0.5, "slip_hidden_size": 32, "slip_projection_dim": 8})],
)
@pytest.mark.parametrize("micro_batch", [1, 5])
def test_micro_batches_have_the_gradients_of_the_whole_batch(
    name: str, options: dict[str, Any], micro_batch: int
) -> None:
    given = batch()
    if options:
        seen = torch.randn(12, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
        given |= {"views": seen, "negative_input_ids": given["input_ids"].flip(1).roll(1, 0)}
    whole = gradients(build_model(name, **options), given)
    assert_same(gradients(build_model(name, micro_batch=micro_batch, logits_chunk=4, **options), given), whole)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_micro_batch_is_recomputed_with_the_same_random_numbers(name: str) -> None:
    given, model, plain = batch(), build_model(name, micro_batch=4), build_model(name)
    for each in (model, plain):
        attach(each, 0.5)
    torch.manual_seed(1)
    found = gradients(model, given)

    def embed(*_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.cat([plain._embed_images(part) for part in given["pixel_values"].split(4)])
        rest = (None,) if name == "clip" else ()
        return images, torch.cat([plain._embed_texts(part, *rest) for part in given["input_ids"].split(4)])

    plain.embed = embed
    torch.manual_seed(1)
    assert_same(found, gradients(plain, given))


def test_micro_batches_have_at_most_the_given_number_of_rows() -> None:
    sizes = []

    def embed(x: torch.Tensor, y: None) -> torch.Tensor:
        sizes.append(len(x))
        return x * 2

    x = torch.randn(7, 2, requires_grad=True)
    torch.testing.assert_close(grad_cache_embed(embed, 3, x, None), 2 * x)
    assert sizes == [3, 3, 1]
    grad_cache_embed(embed, 0, x, None)
    grad_cache_embed(embed, 7, x, None)
    assert sizes[3:] == [7, 7]


MEMORY = """
import json, pathlib, re, torch
from models.contrastive import clip
model, _ = clip.build([], image_size=32, patch_size=4, vision_hidden_size=32, vision_layers=2, text_hidden_size=32,
                      text_layers=1, projection_dim=32, head_dim=16, text_length=16, vocab_size=400)
pixels, ids = torch.empty(4096, 3, 32, 32).normal_(), torch.randint(8, 300, (4096, 12))
def peak(count, micro_batch, logits_chunk):
    model.config.micro_batch, model.config.logits_chunk = micro_batch, logits_chunk
    model(pixel_values=pixels[:count], input_ids=ids[:count]).loss.backward()
    # Not ru_maxrss: a child process inherits its parent's value.
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
before = peak(8, 0, 0)
print(json.dumps([peak(*step) - before for step in [(256, 0, 0), (4096, 256, 128), (512, 0, 0)]]))
"""


@pytest.mark.soak
def test_a_batch_of_4096_needs_the_memory_of_256_plus_its_embeddings() -> None:
    # Each large tensor gets its own memory mapping and is released at once, so the peak counts live tensors. In MiB.
    given = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "100000", "THP_MEM_ALLOC_ENABLE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", MEMORY]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=True)
    direct, cached, twice = json.loads(done.stdout)
    vectors = 2 * 4096 * 32 * 4 / 2**20  # of images and texts
    logits = 128 * 4096 * 4 / 2**20  # one chunk
    # Embeddings exist as parts and joined, before and after normalisation, and as gradients; logits exist as logits, as
    # probabilities and as a gradient. A single tensor of the tokens of all 4096 images would take 32 MiB.
    assert cached < direct + 8 * vectors + 6 * logits
    assert twice > 1.6 * direct  # the measurement does depend on the batch size


def _train_on_a_shard(folder: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    given = {name: value.chunk(world)[rank] for name, value in batch().items()}
    for name in SIZES:
        model = nn.parallel.DistributedDataParallel(build_model(name, micro_batch=4, logits_chunk=4))
        loss = model(**given).loss
        loss.backward()
        found = {name: p.grad for name, p in model.module.named_parameters()}
        dist.all_reduce(loss := loss.detach())
        if rank == 0:
            torch.save({"loss": loss / world, **found}, Path(folder) / name)
    dist.destroy_process_group()


def test_two_processes_with_micro_batches_have_the_gradients_of_one_without(
    tmp_path: Path, apart: Callable[..., Any]
) -> None:
    apart(launch, _train_on_a_shard, 2, str(tmp_path))
    for name in SIZES:
        found = torch.load(tmp_path / name, weights_only=True)
        assert_same(found, gradients(build_model(name), batch()))


@pytest.mark.parametrize("first", [0, 1])
def test_patches_are_dropped_per_image_and_leading_tokens_are_kept(first: int) -> None:
    torch.manual_seed(0)
    tokens = torch.arange(first + 16.0).repeat(64, 1)[..., None].expand(-1, -1, 2)
    module, drop = nn.Identity(), PatchDropout(0.75, first)
    kept = drop(module, None, tokens)[..., 0]
    assert kept.shape == (64, first + 4)
    assert (kept[:, :first] == 0).all()
    patches = kept[:, first:].sort(1).values
    assert (patches.diff(dim=1) > 0).all() and patches.min() >= first  # no duplicates
    assert len({tuple(row) for row in patches.tolist()}) > 50
    assert patches.unique().numel() == 16
    assert drop(module.eval(), None, tokens) is tokens
    assert PatchDropout(0.999, 0)(nn.Identity(), None, tokens).shape[1] == 1
    with pytest.raises(ValueError, match="below 1"):
        PatchDropout(1.0, 0)


@pytest.mark.parametrize(("name", "tokens"), [("clip", 1 + 8), ("siglip", 8)])
def test_patch_dropout_of_one_half_applies_in_training_mode_only(name: str, tokens: int) -> None:
    model, plain = build_model(name), build_model(name)
    attach(model, 0.5)
    pixels = batch()["pixel_values"]
    assert model.vision_model(pixels).last_hidden_state.shape[1] == tokens
    one, other = (tower.vision_model.eval()(pixels) for tower in (model, plain))
    torch.testing.assert_close(one.pooler_output, other.pooler_output)


def test_patch_dropout_works_on_the_tiny_family_and_is_removed_with_its_handle() -> None:
    torch.manual_seed(0)
    model, _ = tiny.build_dual_encoder(TEXTS)
    pixels = torch.randn(2, 3, 64, 64)
    before = model.vision(pixels)
    handle = attach(model, 0.5)
    assert model.vision(pixels).shape == (2, 32, 96)
    torch.testing.assert_close(model.eval().vision(pixels), before)
    handle.remove()
    torch.testing.assert_close(model.train().vision(pixels), before)
    assert not [name for name in model.state_dict() if "patch_embeddings" in name]
    with pytest.raises(ValueError, match="no vision tower"):
        attach(nn.Linear(2, 2), 0.5)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_large_recipes_build(name: str) -> None:
    from vlmflow.training.pretraining.config import PretrainConfig

    section = load(PretrainConfig, str(ROOT / f"recipes/zoo/large/{name}.yaml"), "pretrain")
    with torch.device("meta"):
        model, _ = ZOO[name].build([], **section.model)
    assert 100e6 < sum(p.numel() for p in model.parameters()) < 1e9
    assert section.training.batch_size == 32768
    assert model.config.micro_batch and model.config.logits_chunk
    assert isinstance(model, (clip.CLIP, siglip.SigLIP))
