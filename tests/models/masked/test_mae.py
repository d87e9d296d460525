"""MAE: its loss against a slow formula, transformers' own class, and no leak of masked patches."""

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


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def random_mask(count: int = 3, patches: int = 16, visible: int = 4) -> torch.Tensor:
    """Return a patch mask, (count, patches) bool, with `visible` unmasked patches per row."""
    order = torch.rand(count, patches, generator=torch.Generator().manual_seed(2)).argsort(1)
    return order >= visible


def patch(image: torch.Tensor, number: int, size: int = 4) -> torch.Tensor:
    """Return patch `number`, counted row by row, of an image (3, H, W)."""
    row, column = divmod(number, image.shape[-1] // size)
    return image[:, row * size : (row + 1) * size, column * size : (column + 1) * size]


@pytest.mark.parametrize("normalised", [False, True])
def test_loss_is_the_mean_over_masked_patches_only(normalised: bool):
    model, given, patch_mask = tiny(norm_pix_loss=normalised), images(), random_mask()
    stock: Any = ViTMAEForPreTraining.forward(model, pixel_values=given, noise=patch_mask.float())
    errors = []
    for row in range(3):
        for number in range(16):
            if patch_mask[row, number]:
                target = patch(given[row], number).permute(1, 2, 0).flatten()
                if normalised:
                    variance = (target - target.mean()).square().sum() / (len(target) - 1)  # unbiased
                    target = (target - target.mean()) / math.sqrt(variance + 1e-6)
                errors.append((stock.logits[row, number] - target).square().mean())
    output = model(pixel_values=given, noise=patch_mask.float())
    assert len(errors) == 3 * 12
    torch.testing.assert_close(output.loss, torch.stack(errors).mean())
    assert output.parts["pixels"] is output.loss


def test_a_quarter_of_196_patches_is_visible():
    model = build([], image_size=224, patch_size=16, hidden_size=32, layers=1, head_dim=16, **DECODER)[0]
    states, mask, _ = model.vit.embeddings(torch.zeros(2, 3, 224, 224))
    assert states.shape == (2, 1 + 49, 32)
    assert (mask == 0).sum(1).tolist() == [49, 49]


def test_targets_of_visible_patches_have_no_gradient(monkeypatch):
    model, given, patch_mask = tiny(), images(), random_mask()
    targets = model.patchify(given).requires_grad_()
    monkeypatch.setattr(model, "patchify", lambda *_, **__: targets)
    model(pixel_values=given, noise=patch_mask.float()).loss.backward()
    has_gradient = targets.grad.abs().sum(2) > 0  # type: ignore[union-attr]
    assert torch.equal(has_gradient, patch_mask)


def test_masked_pixels_reach_neither_encoder_nor_reconstruction():
    for normalised in (False, True):
        model, given, patch_mask = tiny(norm_pix_loss=normalised), images(), random_mask()
        other = given.clone()
        for row in range(3):
            for number in patch_mask[row].nonzero()[:, 0].tolist():
                patch(other[row], number).fill_(9.0)
        states = [model.vit(x, noise=patch_mask.float()).last_hidden_state for x in (given, other)]
        torch.testing.assert_close(*states, rtol=0, atol=0)
        reconstructed = [model.reconstruct(pixel_values=x, patch_mask=patch_mask) for x in (given, other)]
        torch.testing.assert_close(*reconstructed, rtol=0, atol=0)


def test_reconstruction_keeps_visible_patches_and_predicts_masked_ones():
    model, given, patch_mask = tiny(), images(), random_mask()
    logits: Any = ViTMAEForPreTraining.forward(model, pixel_values=given, noise=patch_mask.float()).logits
    reconstructed = model.reconstruct(pixel_values=given, patch_mask=patch_mask)
    for row in range(3):
        for number in range(16):
            expected = logits[row, number].view(4, 4, 3).permute(2, 0, 1) if patch_mask[row, number] else None
            torch.testing.assert_close(
                patch(reconstructed[row], number), patch(given[row], number) if expected is None else expected
            )


def test_normalised_predictions_are_rescaled_with_the_statistics_of_visible_patches():
    model, given, patch_mask = tiny(norm_pix_loss=True), images(), random_mask()
    logits: Any = ViTMAEForPreTraining.forward(model, pixel_values=given, noise=patch_mask.float()).logits
    reconstructed = model.reconstruct(pixel_values=given, patch_mask=patch_mask)
    for row in range(3):
        visible = [patch(given[row], number) for number in (~patch_mask[row]).nonzero()[:, 0].tolist()]
        mean = torch.stack([s.mean() for s in visible]).mean()
        deviation = torch.stack([s.std() for s in visible]).mean()
        number = int(patch_mask[row].nonzero()[0])
        expected = logits[row, number].view(4, 4, 3).permute(2, 0, 1) * deviation + mean
        torch.testing.assert_close(patch(reconstructed[row], number), expected, rtol=1e-4, atol=1e-5)


def test_a_wrong_number_of_masked_patches_is_refused():
    with pytest.raises(ValueError, match="12 of 16 patches"):
        tiny().reconstruct(pixel_values=images(), patch_mask=random_mask(visible=5))


def test_unpatchify_inverts_patchify():
    model, given = tiny(), images()
    torch.testing.assert_close(model.unpatchify(model.patchify(given)), given, rtol=0, atol=0)


def test_the_noise_argument_determines_the_mask_and_is_drawn_by_default():
    model, noise = tiny(), torch.rand(3, 16)
    masks = [model.vit(images(), noise=noise).mask for _ in range(2)]
    assert torch.equal(*masks)
    assert torch.equal(masks[0] == 0, noise.argsort(1).argsort(1) < 4)
    losses = {float(model(pixel_values=images()).loss.detach()) for _ in range(4)}
    assert len(losses) == 4


def test_features_equal_transformers_at_mask_ratio_zero(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    stock = ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0)
    torch.testing.assert_close(
        model.get_image_features(pixel_values=images()), stock(images()).last_hidden_state[:, 1:].mean(1)
    )


@pytest.mark.parametrize("normalised", [False, True])
def test_loss_weighted_pooling_weights_patches_by_the_squared_mean_loss(normalised: bool):
    model, given = tiny(norm_pix_loss=normalised, pooling="loss_weighted"), images(2)
    targets = model.patchify(given)
    if normalised:
        targets = (targets - targets.mean(2, keepdim=True)) / (targets.var(2, keepdim=True) + 1e-6).sqrt()
    losses: dict[tuple[int, int], list[torch.Tensor]] = {}
    for visible in (
        [0, 2, 8, 10],
        [1, 3, 9, 11],
        [4, 6, 12, 14],
        [5, 7, 13, 15],
    ):  # interleaved subsets of the 4×4 patches
        noise = torch.tensor([[float(index not in visible) for index in range(16)]] * 2)
        output: Any = ViTMAEForPreTraining.forward(model, pixel_values=given, noise=noise)
        for row in range(2):
            for index in set(range(16)) - set(visible):
                error = output.logits[row, index] - targets[row, index]
                losses.setdefault((row, index), []).append(error.square().mean())
    states = model.vit.forward_unmasked(given)[:, 1:]
    for row, features in enumerate(model.get_image_features(pixel_values=given)):
        weights = torch.stack([torch.stack(losses[row, index]).mean() ** 2 for index in range(16)])
        assert len(losses[row, 0]) == 3
        torch.testing.assert_close(features, (weights @ states[row]) / weights.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_ratio", [0.5, 0.6, 0.9])
def test_patch_loss_masks_every_patch_at_least_once(mask_ratio: float):
    assert (tiny(mask_ratio=mask_ratio).patch_loss(images()) > 0).all()


@pytest.mark.parametrize("side", [1, 5, 8])
def test_interleaved_masks_partition_the_grid(side: int):
    masks = interleaved_masks(side)
    assert torch.equal(torch.cat(masks).sort().values, torch.arange(side * side))
    assert side % 2 or {len(mask) for mask in masks} == {side * side // 4}


def test_initial_position_embeddings_are_distinct_and_weights_are_initialized():
    model = tiny()
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert not positions.requires_grad
        assert (torch.cdist(positions[0], positions[0]) + 9 * torch.eye(17)).min() > 0.1  # no two are equal
    assert model.decoder.mask_token.abs().min() > 0
    bound = math.sqrt(6 / (32 + 128))
    assert 0.9 * bound < model.vit.get_parameter("layers.0.mlp.fc1.weight").abs().max() <= bound
    assert model.vit.embeddings.patch_embeddings.projection.weight.abs().max() <= math.sqrt(6 / (32 + 48))


def test_weights_load_from_transformers_and_into_transformers(tmp_path):
    config: Any = ViTMAEConfig.from_dict(tiny(norm_pix_loss=True).config.to_dict())
    stock, noise = ViTMAEForPreTraining(config).eval(), torch.rand(3, 16)
    stock.decoder.decoder_pos_embed.data.normal_()
    stock.save_pretrained(tmp_path / "stock")
    model = MAE.from_pretrained(tmp_path / "stock")
    expected = stock(pixel_values=images(), noise=noise).loss
    torch.testing.assert_close(model(pixel_values=images(), noise=noise).loss, expected)
    model.save_pretrained(tmp_path / "ours")
    back = ViTMAEForPreTraining.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(back(pixel_values=images(), noise=noise).loss, expected)


def test_a_saved_model_gives_equal_reconstructions_when_loaded(tmp_path):
    model, processor = build([], **SIZES, **DECODER)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = MAE.from_pretrained(tmp_path)
    torch.testing.assert_close(
        *(m.eval().reconstruct(pixel_values=images(), patch_mask=random_mask()) for m in (model, again)), rtol=0, atol=0
    )
    frozen = {name for name, parameter in again.named_parameters() if not parameter.requires_grad}
    assert frozen == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.size["height"] == 16 and loaded.image_mean == processor.image_mean


def test_training_learns_to_predict_the_colour_of_uniform_images():
    model = tiny().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        given = torch.randn(32, 3, 1, 1).expand(-1, -1, 16, 16)
        loss = model(pixel_values=given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15  # a constant prediction gives 1
