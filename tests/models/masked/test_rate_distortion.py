"""Rate and distortion against torch's distributions, and the bound against the objective of a toy."""

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


def pictures(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def hide(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 16, generator=torch.Generator().manual_seed(2)).argsort(1) >= 4


def test_parts_are_a_divergence_and_a_likelihood_in_nats():
    model, given, hidden = tiny(beta=0.3), pictures(), hide()
    with torch.no_grad():
        model.prior_mean.normal_()
        model.prior_log_std.normal_()
        model.pixel_log_std.copy_(torch.tensor([-1.0, 0.5]))
    draw = torch.randn(3, 5, 5)
    output = model(pixel_values=given, noise=hidden.float(), code_noise=draw)
    mean, log_deviation, mask, order = model.encode(given, hidden.float())
    assert torch.equal(mask, hidden) and mean.shape == (3, 1 + 4, 5)
    code = Normal(mean, log_deviation.exp())
    rate = kl_divergence(code, Normal(model.prior_mean, model.prior_log_std.exp())).sum((1, 2)).mean()
    painted = model.decoder(mean + log_deviation.exp() * draw, order).logits
    nats = torch.zeros(())
    for row in range(3):
        for number in range(16):
            down, right = divmod(number, 4)
            truth = given[row, :, 4 * down : 4 * down + 4, 4 * right : 4 * right + 4].permute(1, 2, 0).flatten()
            deviation = math.exp(0.5 if hidden[row, number] else -1.0)
            nats = nats - Normal(painted[row, number], deviation).log_prob(truth).sum()
    torch.testing.assert_close(output.parts["rate"], rate)
    torch.testing.assert_close(output.parts["distortion"], nats / 3)
    torch.testing.assert_close(output.loss, rate + 0.3 * nats / 3)


def test_the_rate_bounds_what_the_code_tells_of_the_picture():
    """E KL(p(z|x) ‖ q) = I(X; Z) + KL(p(z) ‖ q), by sampling, for equally likely pictures."""
    model, given, hidden = tiny().eval(), pictures(6), hide(1).expand(6, -1)
    codes = [
        Normal(mean, deviation.exp()) for mean, deviation in zip(*model.encode(given, hidden.float())[:2], strict=True)
    ]
    z = torch.stack([code.sample((2000,)) for code in codes], 1)  # (2000, 6, 5, 5), of picture i in column i
    likely = torch.stack([code.log_prob(z).sum((2, 3)) for code in codes])  # of picture j's code, (6, 2000, 6)
    own = likely.permute(1, 0, 2).diagonal(dim1=1, dim2=2)  # (2000, 6)
    information = (own - likely.logsumexp(0) + math.log(6)).mean()
    rate = model(pixel_values=given, noise=hidden.float()).parts["rate"]
    assert 0 < information < rate + 1e-3


def test_hidden_pixels_reach_neither_code_nor_painting():
    model, given, hidden = tiny().eval(), pictures(), hide()
    other = given.clone()
    where = hidden.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other[where.expand_as(other)] = 9.0
    codes = [model.encode(x, hidden.float())[0] for x in (given, other)]
    torch.testing.assert_close(*codes, rtol=0, atol=0)
    painted = [model.reconstruct(pixel_values=x, patch_mask=hidden) for x in (given, other)]
    hole = where.expand_as(given)
    torch.testing.assert_close(painted[0][hole], painted[1][hole], rtol=0, atol=0)
    torch.testing.assert_close(painted[0][~hole], given[~hole], rtol=0, atol=0)
    with pytest.raises(ValueError, match="12 of 16 patches"):
        model.reconstruct(pixel_values=given, patch_mask=torch.zeros(3, 16, dtype=torch.bool))


def test_hidden_patches_are_painted_from_the_mean_code():
    model, given, hidden = tiny().eval(), pictures(), hide()
    mae = build_mae([], **SIZES, **DECODER)[0]
    mean, _, _, order = model.encode(given, hidden.float())
    wanted = torch.where(hidden[..., None], model.decoder(mean, order).logits, mae.patchify(given))
    torch.testing.assert_close(model.reconstruct(pixel_values=given, patch_mask=hidden), mae.unpatchify(wanted))


def test_patches_that_tell_much_stand_at_the_fore():
    model, given = tiny().eval(), pictures()
    with torch.no_grad():
        model.prior_mean.normal_()
    mean, log_deviation = model.bottleneck(model.vit.forward_unmasked(given)[:, 1:]).chunk(2, -1)
    prior = Normal(model.prior_mean, model.prior_log_std.exp())
    for row, features in enumerate(model.get_image_features(pixel_values=given)):
        nats = kl_divergence(Normal(mean[row], log_deviation[row].exp()), prior).sum(1)
        wanted = sum(n**2 * m for n, m in zip(nats, mean[row], strict=True)) / (nats**2).sum()
        torch.testing.assert_close(features, wanted)


def test_without_a_price_on_distortion_the_code_says_nothing():
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


def test_saved_and_loaded_it_is_the_same(tmp_path):
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
    assert model.get_image_features(pixel_values=pictures()).shape == (3, 5)
    assert model.decoder.decoder_pos_embed.abs().sum() > 0


# A toy: six pictures, of which f keeps one of three, and four codes.

DATA = torch.tensor([0.3, 0.1, 0.2, 0.15, 0.05, 0.2], dtype=torch.float64)
VIEW = torch.tensor([0, 0, 1, 1, 2, 2])


def simplex(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64).add(0.05).log().softmax(-1)


def best(encoder: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The true marginal p(z) and posterior p(x | z), any where z never comes."""
    joint = DATA[:, None] * encoder[VIEW]
    marginal = joint.sum(0)
    posterior = torch.where(marginal > 0, joint / marginal, 1 / 6)
    return marginal, posterior.T


def test_the_objective_is_its_two_terms_summed_by_hand():
    torch.manual_seed(0)
    encoder = simplex(3, 4)
    information = conditional = 0.0
    seen = [sum(float(DATA[x]) for x in range(6) if VIEW[x] == f) for f in range(3)]
    code = [sum(seen[f] * float(encoder[f, z]) for f in range(3)) for z in range(4)]
    for z in range(4):
        for f in range(3):
            information += seen[f] * float(encoder[f, z]) * math.log(float(encoder[f, z]) / code[z])
        for x in range(6):
            joint = float(DATA[x] * encoder[VIEW[x], z])
            conditional -= joint * math.log(joint / code[z])
    assert float(objective(DATA, VIEW, encoder, 0.7)) == pytest.approx(information + 0.7 * conditional)


def test_the_bound_holds_for_any_prior_and_decoder():
    torch.manual_seed(0)
    for beta in (0.0, 0.5, 3.0):
        for _ in range(50):
            encoder, prior, decoder = simplex(3, 4), simplex(4), simplex(4, 6)
            exact, above = (
                objective(DATA, VIEW, encoder, beta),
                variational_bound(DATA, VIEW, encoder, prior, decoder, beta),
            )
            assert above > exact
            marginal, posterior = best(encoder)
            noise = -sum(float(DATA[x]) * float((encoder[VIEW[x]] * encoder[VIEW[x]].log()).sum()) for x in range(6))
            gap = (marginal * (marginal / prior).log()).sum()
            gap = gap + beta * (marginal[:, None] * posterior * (posterior / decoder).log()).sum()
            assert float(above - exact) == pytest.approx(noise + float(gap))


def test_the_bound_is_reached_by_a_certain_code_and_the_truth_and_by_no_other():
    torch.manual_seed(0)
    certain = torch.eye(4, dtype=torch.float64)[[2, 0, 1]]
    marginal, posterior = best(certain)
    exact = objective(DATA, VIEW, certain, 2.0)
    torch.testing.assert_close(variational_bound(DATA, VIEW, certain, marginal, posterior, 2.0), exact)
    assert variational_bound(DATA, VIEW, certain, simplex(4), posterior, 2.0) > exact + 1e-3
    assert variational_bound(DATA, VIEW, certain, marginal, simplex(4, 6), 2.0) > exact + 1e-3
    noisy = simplex(3, 4)
    assert variational_bound(DATA, VIEW, noisy, *best(noisy), 2.0) > objective(DATA, VIEW, noisy, 2.0) + 1e-3


@pytest.mark.parametrize(("beta", "told"), [(0.01, 0.0), (5.0, 1.0)])
def test_a_cheap_distortion_makes_the_best_code_ignore_the_picture(beta: float, told: float):
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):
        loss = objective(DATA, VIEW, logits.softmax(-1), beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seen = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64)
    information = objective(DATA, VIEW, logits.softmax(-1), 0.0).item()
    assert information == pytest.approx(told * float(-(seen * seen.log()).sum()), abs=0.01)
