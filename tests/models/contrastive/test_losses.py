"""The contrastive losses against slow formulas and open_clip, in chunks and on several processes."""

import importlib.util
import math
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models.contrastive.losses import clip_loss, nt_xent, siglip_loss
from models.zoo import ZOO
from vlmflow.training.collators import PairCollator, caption_ids
from vlmflow.training.launcher import launch

Loss = Callable[..., torch.Tensor]
SCALE, BIAS = torch.tensor(5.0), torch.tensor(-2.0)


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def row_loss(row: list[float], right: int) -> float:
    return math.log(sum(math.exp(x) for x in row)) - row[right]


def logits(rows: torch.Tensor, columns: torch.Tensor, scale: float = 5.0) -> list[list[float]]:
    return [[scale * sum(a * b for a, b in zip(x, y, strict=True)) for y in columns.tolist()] for x in rows.tolist()]


# Each loss as a function of the embeddings, the scale, the bias and the chunk size.
def clip(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, chunk: int | None):
    return clip_loss(image, text, scale, chunk=chunk) + 0 * bias


def neg_clip(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, chunk: int | None):
    wrong = F.normalize(
        torch.cat([text.roll(1, -1), text.flip(-1)]), dim=-1
    )  # two for each image, derived from its own text
    return clip_loss(image, text, scale, wrong, chunk) + 0 * bias


def views(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, chunk: int | None):
    return nt_xent(image, text, 0.1, chunk) + 0 * (scale + bias)


def repeated(text: torch.Tensor) -> torch.Tensor:
    """Caption ids of which some are equal, derived from the texts."""
    return (text[:, 0] * 2).round().long()


def clip_repeated(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, chunk: int | None):
    return clip_loss(image, text, scale, chunk=chunk, captions=repeated(text)) + 0 * bias


def siglip_repeated(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, chunk: int | None
):
    return siglip_loss(image, text, scale, bias, chunk, captions=repeated(text))


LOSSES: dict[str, Loss] = {
    "clip": clip, "neg clip": neg_clip, "siglip": siglip_loss, "views": views,
    "clip, repeated captions": clip_repeated, "siglip, repeated captions": siglip_repeated,
}  # fmt: skip


def loss_and_gradients(loss: Loss, image: torch.Tensor, text: torch.Tensor, chunk: int | None) -> list[torch.Tensor]:
    """Return the loss and its gradients with respect to images, texts, scale and bias."""
    given = [x.clone().requires_grad_() for x in (image, text, SCALE, BIAS)]
    value = loss(*given, chunk)
    return [value.detach(), *torch.autograd.grad(value, given)]


def test_clip_loss_is_the_mean_of_both_directions() -> None:
    image, text = unit(5, 3, seed=0), unit(5, 3, seed=1)
    image_logits, text_logits = logits(image, text), logits(text, image)
    expected = sum(row_loss(row, i) for table in (image_logits, text_logits) for i, row in enumerate(table)) / 10
    assert clip_loss(image, text, SCALE).item() == pytest.approx(expected, rel=1e-5)
    assert clip_loss(text, image, SCALE).item() == pytest.approx(expected, rel=1e-5)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert clip_loss(image[order], text[order], SCALE).item() == pytest.approx(expected, rel=1e-5)
    assert clip_loss(image[order], text, SCALE).item() != pytest.approx(expected, rel=1e-3)


def test_equal_similarities_give_log_n() -> None:
    same = unit(1, 4, seed=0).expand(8, 4)
    assert clip_loss(same, same, SCALE).item() == pytest.approx(2.0794, abs=1e-4)
    assert nt_xent(same, same, 0.1).item() == pytest.approx(math.log(15), abs=1e-4)


def test_negative_captions_are_candidates_for_images_only() -> None:
    image, text, wrong = unit(4, 3, seed=0), unit(4, 3, seed=1), unit(8, 3, seed=2)
    image_logits, text_logits = logits(image, torch.cat([text, wrong])), logits(text, image)
    expected = sum(row_loss(row, i) for table in (image_logits, text_logits) for i, row in enumerate(table)) / 8
    assert clip_loss(image, text, SCALE, wrong).item() == pytest.approx(expected, rel=1e-5)
    wrong.requires_grad_()
    clip_loss(image, text, SCALE, wrong).backward()
    assert wrong.grad is not None and (wrong.grad.abs().sum(1) > 0).all()


def test_equal_captions_are_not_negatives() -> None:
    image, text, ids = unit(5, 3, seed=0), unit(5, 3, seed=1), torch.tensor([7, 8, 7, 9, 7])
    text[2], text[4] = text[0], text[0]
    wrong, wrong_ids = torch.cat([text[1:2], unit(4, 3, seed=2)]), torch.tensor([8, 1, 2, 3, 4])
    both = [*ids, *wrong_ids]
    clip, siglip = 0.0, 0.0
    for i in range(5):
        for table, columns in ((logits(image, torch.cat([text, wrong])), both), (logits(text, image), ids)):
            kept = [j for j, other in enumerate(columns) if j == i or other != ids[i]]
            clip += row_loss([table[i][j] for j in kept], kept.index(i)) / 10
        for j, x in enumerate(logits(image, text)[i]):
            if i == j or ids[i] != ids[j]:
                siglip += math.log1p(math.exp((-1 if i == j else 1) * (x - 2))) / 5
    found = clip_loss(image, text, SCALE, wrong, captions=ids, negative_captions=wrong_ids)
    assert found.item() == pytest.approx(clip, rel=1e-5)
    assert siglip_loss(image, text, SCALE, BIAS, captions=ids).item() == pytest.approx(siglip, rel=1e-5)
    different = torch.arange(5)
    assert torch.equal(clip_loss(image, text, SCALE, captions=different), clip_loss(image, text, SCALE))
    assert torch.equal(siglip_loss(image, text, SCALE, BIAS, captions=different), siglip_loss(image, text, SCALE, BIAS))


def test_caption_ids_are_equal_for_equal_captions_only() -> None:
    found = caption_ids(["a red circle", "A red  circle ", "a circle red", "a red circle."]).tolist()
    assert found[0] == found[1] and len(set(found)) == 3


@pytest.mark.parametrize(
    ("scale", "bias", "cosines", "value"),
    [(10, -10, torch.zeros(8, 8), 10.00036), (10, -10, torch.eye(8), 0.69346), (1, 0, torch.zeros(8, 8), 5.5452)],
)
def test_siglip_loss_equals_values_computed_by_hand(
    scale: float, bias: float, cosines: torch.Tensor, value: float
) -> None:
    found = siglip_loss(cosines, torch.eye(8), torch.tensor(float(scale)), torch.tensor(float(bias)))
    assert found.item() == pytest.approx(value, rel=1e-5)


def test_siglip_loss_is_a_logistic_regression_over_all_pairs() -> None:
    image, text = unit(5, 3, seed=0), unit(5, 3, seed=1)
    expected = 0.0
    for i, row in enumerate(logits(image, text)):
        expected += sum(math.log1p(math.exp((-1 if i == j else 1) * (x - 2))) for j, x in enumerate(row)) / 5
    assert siglip_loss(image, text, SCALE, BIAS).item() == pytest.approx(expected, rel=1e-5)


def test_nt_xent_classifies_the_other_view_among_all_views() -> None:
    one, other = unit(4, 3, seed=0), unit(4, 3, seed=1)
    table = logits(torch.cat([one, other]), torch.cat([one, other]), 10)
    expected = 0.0
    for i, row in enumerate(table):
        choices = [x for j, x in enumerate(row) if j != i]
        expected += (math.log(sum(map(math.exp, choices))) - row[(i + 4) % 8]) / 8
    assert nt_xent(one, other, 0.1).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_chunks_do_not_change_loss_and_gradients(loss: Loss, chunk: int) -> None:
    image, text = unit(12, 6, seed=0), unit(12, 6, seed=1)
    for found, expected in zip(
        loss_and_gradients(loss, image, text, chunk), loss_and_gradients(loss, image, text, None), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_with_chunks_the_full_logit_matrix_is_never_built(loss: Loss) -> None:
    image, text = unit(64, 4, seed=0), unit(64, 4, seed=1)
    columns = {neg_clip: 3, views: 2}.get(loss, 1) * 64
    for chunk, elements in ((None, 64 * columns), (8, max(8 * columns, columns * 4))):
        with LargestTensor() as largest:
            loss_and_gradients(loss, image, text, chunk)
        assert largest.elements == elements


@pytest.fixture(scope="module")
def open_clip() -> ModuleType:
    """Load only open_clip's module of losses: importing the package needs torchvision."""
    try:
        path = next(f for f in files("open_clip_torch") or [] if f.name == "loss.py").locate()
    except PackageNotFoundError:
        pytest.skip("open_clip_torch is not installed")
    spec = importlib.util.spec_from_file_location("open_clip_loss", str(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["open_clip_loss"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_losses_and_gradients_equal_those_of_open_clip(open_clip: ModuleType, name: str) -> None:
    image, text = unit(12, 6, seed=0), unit(12, 6, seed=1)

    def reference(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, _: None):
        if name == "clip":
            return open_clip.ClipLoss()(image, text, scale) + 0 * bias
        return open_clip.SigLipLoss()(image, text, scale, bias)

    found, expected = (loss_and_gradients(loss, image, text, None) for loss in (LOSSES[name], reference))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def _train_on_a_shard(folder: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    image, text = unit(12, 6, seed=0).chunk(world)[rank], unit(12, 6, seed=1).chunk(world)[rank]
    found = {
        f"{name} {chunk}": loss_and_gradients(loss, image, text, chunk)
        for name, loss in LOSSES.items()
        for chunk in (None, 3)
    }
    torch.save(found, Path(folder) / str(rank))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_have_the_losses_and_gradients_of_a_single_process(
    tmp_path: Path, world: int, apart: Callable[..., Any]
) -> None:
    apart(launch, _train_on_a_shard, world, str(tmp_path))
    parts = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(world)]
    for name, loss in LOSSES.items():
        value, *expected = loss_and_gradients(loss, unit(12, 6, seed=0), unit(12, 6, seed=1), None)
        for chunk in (None, 3):
            values, images, texts, scales, biases = zip(*(part[f"{name} {chunk}"] for part in parts), strict=True)
            # DDP averages gradients over processes; the gradient of a row exists only on the process that has the row.
            found = [torch.cat(images) / world, torch.cat(texts) / world]
            found += [torch.stack(scales).mean(0), torch.stack(biases).mean(0)]
            torch.testing.assert_close(torch.stack(values).mean(), value, atol=1e-5, rtol=1e-5)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["tiny-dual-encoder", "clip", "siglip", "llip"])
def test_families_do_not_take_equal_captions_for_negatives(family: str) -> None:
    towers = {"vision_hidden_size": 16, "vision_layers": 1, "text_hidden_size": 16, "text_layers": 1}
    clip = {**towers, "image_size": 16, "patch_size": 8, "projection_dim": 8, "head_dim": 8}
    sizes: dict[str, dict[str, Any]] = {
        "tiny-dual-encoder": {"vision_layers": 1, "text_layers": 1, "image_size": 16},
        "clip": clip,
        "siglip": {"image_size": 16, "patch_size": 8, "hidden_size": 16, "layers": 1, "heads": 2},
        "llip": {**clip, "mixture_tokens": 2, "mixture_heads": 2},
    }
    torch.manual_seed(0)
    model, processor = ZOO[family].build(["a red circle"] * 3, **sizes[family])
    collator, image = PairCollator(model, processor), Image.new("RGB", (16, 16), "red")
    rows = collator.make_rows([image, image.rotate(90), Image.new("RGB", (16, 16), "blue")], ["a red circle"] * 3)
    with torch.no_grad():
        together, alone = model(**collator(rows)).loss, [model(**collator([row])).loss for row in rows]
    torch.testing.assert_close(together, torch.stack(alone).mean())
