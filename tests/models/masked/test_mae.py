"""MAE against its loss written out, transformers' own class, and what may not leak from hidden patches."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from models.masked.mae import MAE, build, interleaved_masks

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "layers": 2, "head_dim": 16}
DECODER: dict[str, Any] = {"decoder_hidden_size": 16, "decoder_layers": 1, "decoder_head_dim": 8}


def tiny(**more) -> MAE:
    torch.manual_seed(0)
    return build([], **SIZES, **DECODER, **more)[0].eval()


def pictures(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def hide(count: int = 3, patches: int = 16, seen: int = 4) -> torch.Tensor:
    """(count, patches) bool with `seen` of a row not hidden."""
    order = torch.rand(count, patches, generator=torch.Generator().manual_seed(2)).argsort(1)
    return order >= seen


def patch(picture: torch.Tensor, number: int, size: int = 4) -> torch.Tensor:
    """Patch `number`, row by row, of a picture (3, H, W)."""
    row, column = divmod(number, picture.shape[-1] // size)
    return picture[:, row * size : (row + 1) * size, column * size : (column + 1) * size]


@pytest.mark.parametrize("normalised", [False, True])
def test_loss_is_the_mean_over_hidden_patches_alone(normalised: bool):
    model, given, hidden = tiny(norm_pix_loss=normalised), pictures(), hide()
    stock: Any = ViTMAEForPreTraining.forward(model, pixel_values=given, noise=hidden.float())
    errors = []
    for row in range(3):
        for number in range(16):
            if hidden[row, number]:
                truth = patch(given[row], number).permute(1, 2, 0).flatten()
                if normalised:
                    variance = (truth - truth.mean()).square().sum() / (len(truth) - 1)  # unbiased
                    truth = (truth - truth.mean()) / math.sqrt(variance + 1e-6)
                errors.append((stock.logits[row, number] - truth).square().mean())
    output = model(pixel_values=given, noise=hidden.float())
    assert len(errors) == 3 * 12
    torch.testing.assert_close(output.loss, torch.stack(errors).mean())
    assert output.parts["pixels"] is output.loss


def test_a_quarter_of_196_patches_is_seen():
    model = build([], image_size=224, patch_size=16, hidden_size=32, layers=1, head_dim=16, **DECODER)[0]
    states, mask, _ = model.vit.embeddings(torch.zeros(2, 3, 224, 224))
    assert states.shape == (2, 1 + 49, 32)
    assert (mask == 0).sum(1).tolist() == [49, 49]


def test_targets_of_seen_patches_have_no_gradient(monkeypatch):
    model, given, hidden = tiny(), pictures(), hide()
    targets = model.patchify(given).requires_grad_()
    monkeypatch.setattr(model, "patchify", lambda *_, **__: targets)
    model(pixel_values=given, noise=hidden.float()).loss.backward()
    moved = targets.grad.abs().sum(2) > 0  # type: ignore[union-attr]
    assert torch.equal(moved, hidden)


def test_hidden_pixels_reach_neither_encoder_nor_painting():
    for normalised in (False, True):
        model, given, hidden = tiny(norm_pix_loss=normalised), pictures(), hide()
        other = given.clone()
        for row in range(3):
            for number in hidden[row].nonzero()[:, 0].tolist():
                patch(other[row], number).fill_(9.0)
        states = [model.vit(x, noise=hidden.float()).last_hidden_state for x in (given, other)]
        torch.testing.assert_close(*states, rtol=0, atol=0)
        painted = [model.reconstruct(pixel_values=x, patch_mask=hidden) for x in (given, other)]
        torch.testing.assert_close(*painted, rtol=0, atol=0)


def test_seen_patches_stay_as_they_are_and_hidden_ones_are_the_models():
    model, given, hidden = tiny(), pictures(), hide()
    logits: Any = ViTMAEForPreTraining.forward(model, pixel_values=given, noise=hidden.float()).logits
    painted = model.reconstruct(pixel_values=given, patch_mask=hidden)
    for row in range(3):
        for number in range(16):
            wanted = logits[row, number].view(4, 4, 3).permute(2, 0, 1) if hidden[row, number] else None
            torch.testing.assert_close(
                patch(painted[row], number), patch(given[row], number) if wanted is None else wanted
            )


def test_normalised_patches_are_painted_with_what_the_seen_ones_have():
    model, given, hidden = tiny(norm_pix_loss=True), pictures(), hide()
    logits: Any = ViTMAEForPreTraining.forward(model, pixel_values=given, noise=hidden.float()).logits
    painted = model.reconstruct(pixel_values=given, patch_mask=hidden)
    for row in range(3):
        seen = [patch(given[row], number) for number in (~hidden[row]).nonzero()[:, 0].tolist()]
        mean = torch.stack([s.mean() for s in seen]).mean()
        deviation = torch.stack([s.std() for s in seen]).mean()
        number = int(hidden[row].nonzero()[0])
        wanted = logits[row, number].view(4, 4, 3).permute(2, 0, 1) * deviation + mean
        torch.testing.assert_close(patch(painted[row], number), wanted, rtol=1e-4, atol=1e-5)


def test_another_number_of_hidden_patches_is_refused():
    with pytest.raises(ValueError, match="12 of 16 patches"):
        tiny().reconstruct(pixel_values=pictures(), patch_mask=hide(seen=5))


def test_patches_back_to_the_picture():
    model, given = tiny(), pictures()
    torch.testing.assert_close(model.unpatchify(model.patchify(given)), given, rtol=0, atol=0)


def test_noise_says_what_is_hidden_and_is_drawn_otherwise():
    model, noise = tiny(), torch.rand(3, 16)
    masks = [model.vit(pictures(), noise=noise).mask for _ in range(2)]
    assert torch.equal(*masks)
    assert torch.equal(masks[0] == 0, noise.argsort(1).argsort(1) < 4)
    losses = {float(model(pixel_values=pictures()).loss.detach()) for _ in range(4)}
    assert len(losses) == 4


def test_a_whole_picture_is_what_transformers_sees_with_nothing_hidden(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    stock = ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0)
    torch.testing.assert_close(
        model.get_image_features(pixel_values=pictures()), stock(pictures()).last_hidden_state[:, 1:].mean(1)
    )


@pytest.mark.parametrize("normalised", [False, True])
def test_what_surprises_stands_at_the_fore(normalised: bool):
    model, given = tiny(norm_pix_loss=normalised, pooling="loss_weighted"), pictures(2)
    targets = model.patchify(given)
    if normalised:
        targets = (targets - targets.mean(2, keepdim=True)) / (targets.var(2, keepdim=True) + 1e-6).sqrt()
    losses: dict[tuple[int, int], list[torch.Tensor]] = {}
    for seen in ([0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]):  # meshes of the 4×4 patches
        noise = torch.tensor([[float(place not in seen) for place in range(16)]] * 2)
        output: Any = ViTMAEForPreTraining.forward(model, pixel_values=given, noise=noise)
        for row in range(2):
            for place in set(range(16)) - set(seen):
                gap = output.logits[row, place] - targets[row, place]
                losses.setdefault((row, place), []).append(gap.square().mean())
    states = model.vit.forward_unmasked(given)[:, 1:]
    for row, features in enumerate(model.get_image_features(pixel_values=given)):
        weights = torch.stack([torch.stack(losses[row, place]).mean() ** 2 for place in range(16)])
        assert len(losses[row, 0]) == 3
        torch.testing.assert_close(features, (weights @ states[row]) / weights.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_ratio", [0.5, 0.6, 0.9])
def test_every_patch_is_hidden_at_least_once(mask_ratio: float):
    assert (tiny(mask_ratio=mask_ratio).patch_loss(pictures()) > 0).all()


@pytest.mark.parametrize("side", [1, 5, 8])
def test_meshes_share_the_grid(side: int):
    meshes = interleaved_masks(side)
    assert torch.equal(torch.cat(meshes).sort().values, torch.arange(side * side))
    assert side % 2 or {len(mesh) for mesh in meshes} == {side * side // 4}


def test_new_weights_know_places():
    model = tiny()
    for places in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert not places.requires_grad
        assert (torch.cdist(places[0], places[0]) + 9 * torch.eye(17)).min() > 0.1  # no two alike
    assert model.decoder.mask_token.abs().min() > 0
    bound = math.sqrt(6 / (32 + 128))
    assert 0.9 * bound < model.vit.get_parameter("layers.0.mlp.fc1.weight").abs().max() <= bound
    assert model.vit.embeddings.patch_embeddings.projection.weight.abs().max() <= math.sqrt(6 / (32 + 48))


def test_transformers_weights_load_and_ours_load_there(tmp_path):
    config: Any = ViTMAEConfig.from_dict(tiny(norm_pix_loss=True).config.to_dict())
    stock, noise = ViTMAEForPreTraining(config).eval(), torch.rand(3, 16)
    stock.decoder.decoder_pos_embed.data.normal_()
    stock.save_pretrained(tmp_path / "stock")
    model = MAE.from_pretrained(tmp_path / "stock")
    wanted = stock(pixel_values=pictures(), noise=noise).loss
    torch.testing.assert_close(model(pixel_values=pictures(), noise=noise).loss, wanted)
    model.save_pretrained(tmp_path / "ours")
    back = ViTMAEForPreTraining.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(back(pixel_values=pictures(), noise=noise).loss, wanted)


def test_saved_and_loaded_it_paints_the_same(tmp_path):
    model, processor = build([], **SIZES, **DECODER)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = MAE.from_pretrained(tmp_path)
    torch.testing.assert_close(
        *(m.eval().reconstruct(pixel_values=pictures(), patch_mask=hide()) for m in (model, again)), rtol=0, atol=0
    )
    frozen = {name for name, parameter in again.named_parameters() if not parameter.requires_grad}
    assert frozen == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.size["height"] == 16 and loaded.image_mean == processor.image_mean


def test_it_learns_to_paint_one_colour_from_what_is_seen():
    model = tiny().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        given = torch.randn(32, 3, 1, 1).expand(-1, -1, 16, 16)
        loss = model(pixel_values=given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15  # a model that saw nothing would be at 1
