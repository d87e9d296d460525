"""The energy model on tables and Gaussians with known results, and without Langevin steps against InfoNCE."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel

from models.contrastive.energy import EnergyConfig, EnergyModel, build, energy_terms, langevin, sample_negatives
from vlmflow.inference.inputs import tokenize_captions

TEXTS = ["a red circle", "a blue star left of a red circle", "two green crosses", "a red star"] * 3
SIZES = {
    "image_size": 16, "patch_size": 8, "vision_hidden_size": 16, "vision_layers": 1, "text_hidden_size": 12,
    "text_layers": 1,
    "projection_dim": 10, "head_dim": 4, "text_length": 16,
}  # fmt: skip
# Each state occurs in proportion to its probability, so the mean over these samples is the exact expectation.
DATA = torch.tensor([0] * 1 + [1] * 2 + [2] * 3 + [3] * 4 + [4] * 5)
SAMPLES = torch.tensor([0] * 4 + [1] * 3 + [2] * 1 + [3] * 1 + [4] * 1)


def build_model(**options: Any) -> tuple[EnergyModel, Any]:
    torch.manual_seed(0)
    model, processor = build(TEXTS, **SIZES, **options)
    return model.eval(), processor


def batch(model: EnergyModel, processor: Any, count: int = 4) -> dict[str, torch.Tensor]:
    tokens = tokenize_captions(processor.tokenizer, model.config, TEXTS[:count])
    pixels = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-1.5, 1.5)
    return {"pixel_values": pixels, **tokens}


def table(constant: float) -> torch.Tensor:
    """Return energies whose distribution is that of SAMPLES, for any constant."""
    return (constant - (torch.bincount(SAMPLES) / 10).double().log()).requires_grad_()


def test_the_contrast_has_the_gradient_of_the_exact_likelihood_for_any_constant() -> None:
    found, expected = [], []
    for constant in (0.0, 7.0):
        energy = table(constant)
        likelihood = energy[DATA].mean() + torch.logsumexp(-energy, 0)  # −log p with the exact log Z
        expected += torch.autograd.grad(likelihood, energy)
        found += torch.autograd.grad(energy_terms(energy[DATA], energy[SAMPLES])[0], energy)
    for one in (*found, *expected):
        torch.testing.assert_close(one, expected[0], atol=1e-6, rtol=0)
    assert expected[0].abs().max() > 0.1
    assert energy_terms(table(0.0)[DATA], table(0.0)[SAMPLES])[0].item() == pytest.approx(
        energy_terms(table(7.0)[DATA], table(7.0)[SAMPLES])[0].item(), abs=1e-6
    )


def test_the_second_term_is_the_sum_of_mean_squares() -> None:
    assert energy_terms(torch.tensor([1.0, 3.0]), torch.tensor([2.0]))[1].item() == 9


def test_negatives_are_drawn_from_the_softmax_of_each_column() -> None:
    torch.manual_seed(0)
    energies = torch.tensor([[0.0, 2.0], [1.0, 0.0], [-1.0, 0.5]])
    drawn = sample_negatives(energies, 4000)  # (num_draws, captions)
    for column in range(2):
        share = torch.bincount(drawn[:, column], minlength=3) / 4000
        torch.testing.assert_close(share, (-energies[:, column]).softmax(0), atol=0.035, rtol=0)


def test_langevin_samples_have_the_moments_of_a_gaussian() -> None:
    torch.manual_seed(0)
    mean, deviation = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.5])

    def energy(x: torch.Tensor) -> torch.Tensor:
        return ((x - mean) ** 2 / (2 * deviation**2)).sum(-1)

    for noise in (1.0, 0.5):
        x = langevin(energy, torch.full((10000, 2), 4.0), steps=800, step_size=0.2, noise=noise)
        torch.testing.assert_close(x.mean(0), mean, atol=0.05, rtol=0)
        torch.testing.assert_close(x.std(0) / noise, deviation, atol=0, rtol=0.05)


def test_langevin_without_noise_descends_and_stays_in_range() -> None:
    x = torch.tensor([[4.0], [-3.0]], requires_grad=True)
    with torch.no_grad():  # as evaluation calls it
        one = langevin(lambda x: 3 * x[:, 0], x, steps=2, step_size=1.0, noise=0.0, low=-2.0)
    assert one.tolist() == [[1.0], [-2.0]] and not one.requires_grad and x.grad is None


def test_without_steps_the_expected_gradient_equals_that_of_infonce() -> None:
    """Sum over all draws: the chain of caption j starts at image i with probability p_ij.

    All other chains start at their own image and contribute no gradient.
    """
    model, processor = build_model(langevin_steps=0, energy_penalty=0.0)
    given = batch(model, processor)
    parameters = list(model.parameters())
    image, text = model.embed(**given)
    logits = model.scale * image @ text.T
    expected = torch.autograd.grad(F.cross_entropy(logits.T, torch.arange(4)), parameters)
    found = [torch.zeros_like(p) for p in parameters]
    for j in range(4):
        for i, probability in enumerate(logits[:, j].softmax(0).tolist()):
            start = torch.arange(4).index_fill(0, torch.tensor(j), i)[None]
            for total, part in zip(
                found, torch.autograd.grad(model(**given, start=start).loss, parameters), strict=True
            ):
                total += probability * part
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert max(float(t.abs().max()) for t in expected) > 1e-2


def test_the_loss_compares_pairs_with_the_ends_of_the_chains() -> None:
    model, processor = build_model(langevin_steps=2, langevin_share=0.5, energy_penalty=0.1)
    given, start = batch(model, processor), torch.tensor([[2, 0, 1, 1], [3, 3, 0, 2]])
    out, again = (torch.manual_seed(5) and model(**given, start=start) for _ in range(2))
    with torch.no_grad():
        text = model.embed(**given)[1]
        torch.manual_seed(5)
        moved = model.sample(given["pixel_values"][start[0, :2]], text[:2])
        # Two captions are compared with the end of their chain, the other two with the mean of both draws.
        ends = torch.cat([moved, moved, *given["pixel_values"][start[:, 2:]]])
        images = model.visual_projection(model.vision_model(torch.cat([given["pixel_values"], ends])).pooler_output)
        energy = -model.scale * F.cosine_similarity(images, torch.cat([text, text[:2], text[:2], text[2:], text[2:]]))
    plus, minus = energy.split([4, 8])
    expected = plus.mean() - minus.mean() + 0.1 * ((plus**2).mean() + (minus**2).mean())
    torch.testing.assert_close(out.loss.detach(), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(out.loss, again.loss) and out.parts.keys() == {"contrast", "size"}
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_samples_stay_in_the_pixel_range_and_weights_get_no_gradient() -> None:
    model, processor = build_model(langevin_steps=5, langevin_step_size=5.0, langevin_noise=0.01)
    given = batch(model, processor)
    text = model.embed(**given)[1]
    samples = model.sample(given["pixel_values"], text)
    for channel, (mean, deviation) in enumerate(
        zip(processor.image_processor.image_mean, processor.image_processor.image_std, strict=True)
    ):
        assert samples[:, channel].min() >= -mean / deviation - 1e-5
        assert samples[:, channel].max() <= (1 - mean) / deviation + 1e-5
    assert not samples.requires_grad and all(p.grad is None for p in model.parameters())
    before, after = model.energy(given["pixel_values"], text), model.energy(samples, text)
    assert (after < before).all()  # with almost no noise, the energy falls


def test_the_loss_can_be_computed_under_no_grad() -> None:
    model, processor = build_model()
    with torch.no_grad():
        assert not model(**batch(model, processor)).loss.requires_grad


def test_a_saved_model_gives_equal_outputs_when_loaded(tmp_path: Path) -> None:
    model, processor = build_model(langevin_share=0.25)
    given = batch(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for cls in (AutoModel, EnergyModel):
        again = cls.from_pretrained(tmp_path)
        assert type(again) is EnergyModel and again.config.langevin_share == 0.25
        for one, other in zip(again.embed(**given), model.embed(**given), strict=True):
            assert torch.equal(one, other)
    tokens = tokenize_captions(AutoProcessor.from_pretrained(tmp_path).tokenizer, model.config, TEXTS[:4])
    assert torch.equal(tokens["input_ids"], given["input_ids"])


def test_weights_of_the_stock_clip_load(tmp_path: Path) -> None:
    source, _ = build_model()
    stock = CLIPModel(CLIPConfig.from_dict(source.config.to_dict()))
    stock.save_pretrained(tmp_path)
    model = EnergyModel.from_pretrained(tmp_path)
    assert type(model.config) is EnergyConfig
    assert torch.equal(model.visual_projection.weight, stock.visual_projection.weight)


@pytest.mark.parametrize("invalid", [{"langevin_share": 1.5}, {"langevin_steps": -1}, {"num_draws": 0}])
def test_invalid_options_are_refused(invalid: dict[str, float]) -> None:
    with pytest.raises(Exception, match=next(iter(invalid))):
        build_model(**invalid)
