"""I-JEPA: disjoint masks, the target encoder's moving average in closed form, and the loss patch by patch."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoProcessor, IJepaConfig, IJepaModel

from models.masked.ijepa import IJepa, IJepaPretrainingConfig, build, sample_block_size, sample_multiblock

SIZES: dict[str, Any] = {"image_size": 24, "patch_size": 4, "hidden_size": 32, "layers": 2, "head_dim": 16}
PREDICTOR: dict[str, Any] = {"predictor_hidden_size": 16, "predictor_layers": 1, "predictor_heads": 2}


def tiny(**more) -> IJepa:
    torch.manual_seed(0)
    return build([], **SIZES, **PREDICTOR, **{"min_context": 4, "total_steps": 10, "initializer_range": 0.1} | more)[0]


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def trainable(model: IJepa) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def grid(side: int, **more) -> IJepaPretrainingConfig:
    return IJepaPretrainingConfig(image_size=side * 14, patch_size=14, **more)


@pytest.mark.parametrize("side", [6, 8, 14, 16])
def test_context_and_targets_are_disjoint(side: int):
    config = grid(side, min_context=10 if side > 8 else 2)
    torch.manual_seed(0)
    for _ in range(20):
        context, targets = sample_multiblock(16, config)
        assert targets.shape[:2] == (16, 4)
        assert context.shape[1] >= config.min_context
        for row in range(16):
            kept = context[row].tolist()
            assert len(set(kept)) == len(kept)
            assert not set(kept) & set(targets[row].flatten().tolist())
            assert all(0 <= index < side * side for index in kept)


def test_targets_are_rectangles_and_cover_every_patch():
    torch.manual_seed(0)
    covered = set()
    for _ in range(60):
        _, targets = sample_multiblock(8, grid(8, min_context=1))
        for block in targets.flatten(0, 1):
            rows, columns = {p // 8 for p in block.tolist()}, {p % 8 for p in block.tolist()}
            height, width = max(rows) - min(rows) + 1, max(columns) - min(columns) + 1
            assert len(rows) == height and len(columns) == width and height * width == len(set(block.tolist()))
            covered |= set(block.tolist())
    assert covered == set(range(64))


def test_block_sizes_respect_scale_and_aspect_ratio():
    torch.manual_seed(0)
    for _ in range(200):
        height, width = sample_block_size(32, (0.15, 0.2), (0.75, 1.5))
        assert 0.14 < height * width / 1024 < 0.21
        assert 0.7 < height / width < 1.6
    assert sample_block_size(8, (1.0, 1.0), (1.0, 1.0)) == (8, 8)


def test_on_a_small_grid_the_context_still_excludes_the_targets():
    context, targets = sample_multiblock(8, grid(4, min_context=16))
    assert all(not set(c.tolist()) & set(t.flatten().tolist()) for c, t in zip(context, targets, strict=True))
    with pytest.raises(ValueError, match="target_scale smaller"):
        sample_multiblock(8, grid(4, target_scale=(1.0, 1.0), target_aspect=(1.0, 1.0)))


def test_loss_is_smooth_l1_to_layer_normed_features_of_the_whole_image():
    model, given = tiny().eval(), images()
    with torch.no_grad():
        for parameter in model.ijepa.parameters():  # so that the target encoder differs from the context encoder
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    context, targets = sample_multiblock(3, model.config)
    output = model(pixel_values=given, context_indices=context, targets=targets)
    errors = []
    for row in range(3):
        features = model.ijepa(given[row : row + 1]).last_hidden_state[0]
        states = model.context.encode_visible(given[row : row + 1], context[row : row + 1])
        for block in targets[row]:  # one at a time, so that blocks cannot attend to each other
            predicted = model.predictor(states, context[row : row + 1], block[None, None])[0, 0]
            for index, prediction in zip(block.tolist(), predicted, strict=True):
                target = features[index] - features[index].mean()
                target = target / torch.sqrt(target.square().mean() + 1e-5)
                error = (prediction - target).abs()
                errors.append(torch.where(error < 1, 0.5 * error * error, error - 0.5).mean())
    torch.testing.assert_close(output.loss, torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)
    assert output.parts["features"] is output.loss


def test_the_context_encoder_sees_only_its_patches_and_the_target_encoder_all_patches():
    model, given = tiny().eval(), images(1)
    indices = torch.arange(12)[None]  # the two upper rows of six
    below, above = given.clone(), given.clone()
    below[..., 8:, :] += 1
    above[..., :8, :] += 1
    states = model.context.encode_visible(given, indices)
    torch.testing.assert_close(model.context.encode_visible(below, indices), states, rtol=0, atol=0)
    assert not torch.allclose(model.context.encode_visible(above, indices), states)
    lower = [model.ijepa(x).last_hidden_state[:, 30:] for x in (given, above)]
    assert not torch.allclose(*lower)


def test_gradients_reach_context_encoder_and_predictor_but_not_the_target_encoder():
    model = tiny().train()
    model(pixel_values=images()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.ijepa.parameters())
    trained = [*model.context.parameters(), *model.predictor.parameters()]
    assert all(p.grad is not None for p in trained if p.requires_grad)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and not name.startswith("ijepa.")}
    assert frozen == {"context.embeddings.position_embeddings", "predictor.positions"}


def test_the_target_encoder_equals_the_closed_form_of_the_moving_average():
    model = tiny(momentum=0.5, total_steps=4).train()
    name = "layers.0.mlp.fc1.weight"
    online = dict(model.context.named_parameters())[name]
    target = dict(model.ijepa.named_parameters())[name]
    assert torch.equal(online, target)
    momenta = [0.5, 0.625, 0.75, 0.875]  # for steps 0 to 3 of 4
    assert [model.momentum(step) for step in (0, 1, 2, 3, 4, 9)] == [*momenta, 1.0, 1.0]
    weights = [target.clone()]
    for _ in range(4):
        model(pixel_values=images())
        with torch.no_grad():  # stands for the optimizer's step
            online.add_(torch.randn_like(online))
        weights.append(online.detach().clone())
    model(pixel_values=images())  # updates the average with the last step
    # f̄ = Σ_k (1 − m_k) Π_{j > k} m_j · f_k, plus the share of the initial weights
    expected = weights[0] * math.prod(momenta)
    for k in range(4):
        expected = expected + (1 - momenta[k]) * math.prod(momenta[k + 1 :]) * weights[k + 1]
    torch.testing.assert_close(target, expected)
    before = target.clone()
    model.eval()(pixel_values=images())
    assert torch.equal(target, before)


def test_the_papers_momentum_rises_from_0_996_to_1():
    model = tiny(total_steps=1000)
    assert model.momentum(0) == 0.996
    assert model.momentum(500) == pytest.approx(0.998)
    assert model.momentum(1000) == 1.0


def test_features_are_the_mean_of_the_target_encoders_states():
    model = tiny()
    with torch.no_grad():
        for parameter in model.context.parameters():
            parameter.zero_()
    features = model.get_image_features(pixel_values=images())
    torch.testing.assert_close(features, model.ijepa(images()).last_hidden_state.mean(1))
    assert features.std(0).min() > 0


def test_loss_weighted_pooling_weights_patches_by_the_squared_prediction_loss():
    model, given = tiny(pooling="loss_weighted").eval(), images(2)
    states = model.ijepa(given).last_hidden_state
    features = model.get_image_features(pixel_values=given)
    for row in range(2):
        weights = torch.zeros(36)
        for index in range(36):
            masked = [p for p in range(36) if p // 6 % 2 == index // 6 % 2 and p % 2 == index % 2]
            visible = torch.tensor([[p for p in range(36) if p not in masked]])
            context = model.context.encode_visible(given[row : row + 1], visible)
            predicted = model.predictor(context, visible, torch.tensor([[masked]]))[0, 0, masked.index(index)]
            target = F.layer_norm(states[row, index], (32,))
            weights[index] = F.smooth_l1_loss(predicted, target).detach() ** 2
        torch.testing.assert_close(features[row], (weights @ states[row]) / weights.sum(), rtol=1e-4, atol=1e-5)


def test_transformers_weights_load_into_both_encoders(tmp_path):
    sizes = {key: value for key, value in tiny().config.to_diff_dict().items() if hasattr(IJepaConfig(), key)}
    stock = IJepaModel(IJepaConfig(**sizes)).eval()
    with torch.no_grad():
        stock.embeddings.position_embeddings.normal_()  # differs from our initial value
    stock.save_pretrained(tmp_path)
    model = IJepa.from_pretrained(tmp_path, predictor_hidden_size=16, predictor_heads=2, predictor_layers=1)
    for encoder in (model.ijepa, model.context):
        torch.testing.assert_close(encoder(images()).last_hidden_state, stock(images()).last_hidden_state)
    assert int(model.steps) == 0
    assert model.predictor.positions.abs().sum() > 0
    assert trainable(model) == trainable(tiny())


def test_a_saved_model_resumes_and_transformers_loads_its_target_encoder(tmp_path):
    model, processor = build([], **SIZES, **PREDICTOR, min_context=4, total_steps=10)
    model(pixel_values=images())
    with torch.no_grad():
        model.context.layernorm.weight.add_(1.0)
    model(pixel_values=images())
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, stock = IJepa.from_pretrained(tmp_path), IJepaModel.from_pretrained(tmp_path)
    assert int(again.steps) == 2
    for (name, old), new in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(old, new), name
    assert trainable(again) == trainable(model)
    features = model.eval().get_image_features(pixel_values=images())
    torch.testing.assert_close(again.get_image_features(pixel_values=images()), features)
    torch.testing.assert_close(stock(images()).last_hidden_state.mean(1), features)
    assert AutoProcessor.from_pretrained(tmp_path).size["height"] == 24


def test_the_loss_falls_and_features_do_not_collapse():
    torch.manual_seed(0)
    model = tiny(momentum=0.9, total_steps=80).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    colours = torch.randn(64, 3, 1, 1).expand(-1, -1, 24, 24) + 0.3 * torch.randn(64, 3, 24, 24)
    losses = []
    for _ in range(80):
        loss = model(pixel_values=colours[torch.randint(64, (16,))]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    features = F.layer_norm(model.eval().ijepa(colours).last_hidden_state, (32,)).mean(1)
    assert features.std(0).mean() > 0.1  # 0 if the features have collapsed
