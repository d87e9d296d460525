"""Rate and distortion against torch's distributions, and the variational bound on a discrete toy problem."""

import math
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from transformers import AutoModel, AutoProcessor

from models.masked.mae import build as build_mae
from models.masked.rate_distortion import RateDistortion, build, objective, variational_bound

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "layers": 2, "head_dim": 16}
DECODER: dict[str, Any] = {"decoder_hidden_size": 16, "decoder_layers": 1, "decoder_head_dim": 8}


def tiny(**more) -> RateDistortion:
    torch.manual_seed(0)
    return build([], **SIZES, **DECODER, **{"code_size": 5} | more)[0]


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def random_mask(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 16, generator=torch.Generator().manual_seed(2)).argsort(1) >= 4


def test_parts_are_a_kl_divergence_and_a_negative_log_likelihood_in_nats():
    model, given, patch_mask = tiny(beta=0.3), images(), random_mask()
    with torch.no_grad():
        model.prior_mean.normal_()
        model.prior_log_std.normal_()
        model.pixel_log_std.copy_(torch.tensor([-1.0, 0.5]))
    draw = torch.randn(3, 5, 5)
    output = model(pixel_values=given, noise=patch_mask.float(), code_noise=draw)
    mean, log_deviation, mask, order = model.encode(given, patch_mask.float())
    assert torch.equal(mask, patch_mask) and mean.shape == (3, 1 + 4, 5)
    code = Normal(mean, log_deviation.exp())
    rate = kl_divergence(code, Normal(model.prior_mean, model.prior_log_std.exp())).sum((1, 2)).mean()
    predicted = model.decoder(mean + log_deviation.exp() * draw, order).logits
    nats = torch.zeros(())
    for row in range(3):
        for number in range(16):
            down, right = divmod(number, 4)
            target = given[row, :, 4 * down : 4 * down + 4, 4 * right : 4 * right + 4].permute(1, 2, 0).flatten()
            deviation = math.exp(0.5 if patch_mask[row, number] else -1.0)
            nats = nats - Normal(predicted[row, number], deviation).log_prob(target).sum()
    torch.testing.assert_close(output.parts["rate"], rate)
    torch.testing.assert_close(output.parts["distortion"], nats / 3)
    torch.testing.assert_close(output.loss, rate + 0.3 * nats / 3)


def test_the_rate_is_an_upper_bound_of_the_mutual_information():
    """E KL(p(z|x) ‖ q) = I(X; Z) + KL(p(z) ‖ q), estimated by sampling, for equally likely images."""
    model, given, patch_mask = tiny().eval(), images(6), random_mask(1).expand(6, -1)
    codes = [
        Normal(mean, deviation.exp())
        for mean, deviation in zip(*model.encode(given, patch_mask.float())[:2], strict=True)
    ]
    z = torch.stack([code.sample((2000,)) for code in codes], 1)  # (2000, 6, 5, 5), codes of image i in column i
    log_probs = torch.stack(
        [code.log_prob(z).sum((2, 3)) for code in codes]
    )  # under image j's code distribution, (6, 2000, 6)
    own = log_probs.permute(1, 0, 2).diagonal(dim1=1, dim2=2)  # (2000, 6)
    information = (own - log_probs.logsumexp(0) + math.log(6)).mean()
    rate = model(pixel_values=given, noise=patch_mask.float()).parts["rate"]
    assert 0 < information < rate + 1e-3


def test_masked_pixels_reach_neither_code_nor_reconstruction():
    model, given, patch_mask = tiny().eval(), images(), random_mask()
    other = given.clone()
    pixel_mask = patch_mask.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other[pixel_mask.expand_as(other)] = 9.0
    codes = [model.encode(x, patch_mask.float())[0] for x in (given, other)]
    torch.testing.assert_close(*codes, rtol=0, atol=0)
    reconstructed = [model.reconstruct(pixel_values=x, patch_mask=patch_mask) for x in (given, other)]
    pixel_mask = pixel_mask.expand_as(given)
    torch.testing.assert_close(reconstructed[0][pixel_mask], reconstructed[1][pixel_mask], rtol=0, atol=0)
    torch.testing.assert_close(reconstructed[0][~pixel_mask], given[~pixel_mask], rtol=0, atol=0)
    with pytest.raises(ValueError, match="12 of 16 patches"):
        model.reconstruct(pixel_values=given, patch_mask=torch.zeros(3, 16, dtype=torch.bool))


def test_masked_patches_are_reconstructed_from_the_mean_code():
    model, given, patch_mask = tiny().eval(), images(), random_mask()
    mae = build_mae([], **SIZES, **DECODER)[0]
    mean, _, _, order = model.encode(given, patch_mask.float())
    expected = torch.where(patch_mask[..., None], model.decoder(mean, order).logits, mae.patchify(given))
    torch.testing.assert_close(model.reconstruct(pixel_values=given, patch_mask=patch_mask), mae.unpatchify(expected))


def test_features_weight_patches_by_their_squared_rate():
    model, given = tiny().eval(), images()
    with torch.no_grad():
        model.prior_mean.normal_()
    mean, log_deviation = model.bottleneck(model.vit.forward_unmasked(given)[:, 1:]).chunk(2, -1)
    prior = Normal(model.prior_mean, model.prior_log_std.exp())
    for row, features in enumerate(model.get_image_features(pixel_values=given)):
        nats = kl_divergence(Normal(mean[row], log_deviation[row].exp()), prior).sum(1)
        expected = sum(n**2 * m for n, m in zip(nats, mean[row], strict=True)) / (nats**2).sum()
        torch.testing.assert_close(features, expected)


def test_with_beta_zero_the_rate_falls_to_zero():
    rates = {}
    for beta in (0.0, 1.0):
        model = tiny(beta=beta).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0)
        for _ in range(60):
            output = model(pixel_values=torch.randn(16, 3, 1, 1).expand(-1, -1, 16, 16))
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        rates[beta] = float(output.parts["rate"].detach())
    assert rates[0.0] < 0.5
    assert rates[1.0] > 5


def test_a_saved_model_is_equal_when_loaded(tmp_path):
    model, processor = build([], **SIZES, **DECODER, code_size=5)
    with torch.no_grad():
        model.prior_mean.normal_()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for again in (RateDistortion.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(again, RateDistortion)
        for (name, old), new in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(old, new), name
        frozen = {name for name, parameter in again.named_parameters() if not parameter.requires_grad}
        assert frozen == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    assert AutoProcessor.from_pretrained(tmp_path).size["height"] == 16
    assert model.get_image_features(pixel_values=images()).shape == (3, 5)
    assert model.decoder.decoder_pos_embed.abs().sum() > 0


# A toy problem: six images, mapped by f to three views, and four codes.

DATA = torch.tensor([0.3, 0.1, 0.2, 0.15, 0.05, 0.2], dtype=torch.float64)
VIEW = torch.tensor([0, 0, 1, 1, 2, 2])


def simplex(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64).add(0.05).log().softmax(-1)


def optimal_prior_and_decoder(encoder: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the true marginal p(z) and posterior p(x | z); the posterior is uniform for codes with p(z) = 0."""
    joint = DATA[:, None] * encoder[VIEW]
    marginal = joint.sum(0)
    posterior = torch.where(marginal > 0, joint / marginal, 1 / 6)
    return marginal, posterior.T


def test_the_objective_equals_the_sum_of_its_two_terms():
    torch.manual_seed(0)
    encoder = simplex(3, 4)
    information = conditional = 0.0
    views = [sum(float(DATA[x]) for x in range(6) if VIEW[x] == f) for f in range(3)]
    code = [sum(views[f] * float(encoder[f, z]) for f in range(3)) for z in range(4)]
    for z in range(4):
        for f in range(3):
            information += views[f] * float(encoder[f, z]) * math.log(float(encoder[f, z]) / code[z])
        for x in range(6):
            joint = float(DATA[x] * encoder[VIEW[x], z])
            conditional -= joint * math.log(joint / code[z])
    assert float(objective(DATA, VIEW, encoder, 0.7)) == pytest.approx(information + 0.7 * conditional)


def test_the_bound_holds_for_any_prior_and_decoder():
    torch.manual_seed(0)
    for beta in (0.0, 0.5, 3.0):
        for _ in range(50):
            encoder, prior, decoder = simplex(3, 4), simplex(4), simplex(4, 6)
            exact, bound = (
                objective(DATA, VIEW, encoder, beta),
                variational_bound(DATA, VIEW, encoder, prior, decoder, beta),
            )
            assert bound > exact
            marginal, posterior = optimal_prior_and_decoder(encoder)
            noise = -sum(float(DATA[x]) * float((encoder[VIEW[x]] * encoder[VIEW[x]].log()).sum()) for x in range(6))
            gap = (marginal * (marginal / prior).log()).sum()
            gap = gap + beta * (marginal[:, None] * posterior * (posterior / decoder).log()).sum()
            assert float(bound - exact) == pytest.approx(noise + float(gap))


def test_the_bound_is_tight_only_for_a_deterministic_code_with_true_prior_and_posterior():
    torch.manual_seed(0)
    deterministic = torch.eye(4, dtype=torch.float64)[[2, 0, 1]]
    marginal, posterior = optimal_prior_and_decoder(deterministic)
    exact = objective(DATA, VIEW, deterministic, 2.0)
    torch.testing.assert_close(variational_bound(DATA, VIEW, deterministic, marginal, posterior, 2.0), exact)
    assert variational_bound(DATA, VIEW, deterministic, simplex(4), posterior, 2.0) > exact + 1e-3
    assert variational_bound(DATA, VIEW, deterministic, marginal, simplex(4, 6), 2.0) > exact + 1e-3
    noisy = simplex(3, 4)
    assert (
        variational_bound(DATA, VIEW, noisy, *optimal_prior_and_decoder(noisy), 2.0)
        > objective(DATA, VIEW, noisy, 2.0) + 1e-3
    )


@pytest.mark.parametrize(("beta", "information_share"), [(0.01, 0.0), (5.0, 1.0)])
def test_with_a_low_beta_the_optimal_code_ignores_the_image(beta: float, information_share: float):
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):
        loss = objective(DATA, VIEW, logits.softmax(-1), beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    views = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)
    information = objective(DATA, VIEW, logits.softmax(-1), 0.0).item()
    assert information == pytest.approx(information_share * float(-(views * views.log()).sum()), abs=0.01)
