"""The energy model on tables and Gaussians, whose truth is known, and against InfoNCE, which it is without steps."""

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
# Samples in which every state is as frequent as it is likely: their mean is the expectation.
DATA = torch.tensor([0] * 1 + [1] * 2 + [2] * 3 + [3] * 4 + [4] * 5)
SAMPLES = torch.tensor([0] * 4 + [1] * 3 + [2] * 1 + [3] * 1 + [4] * 1)


def made(**options: Any) -> tuple[EnergyModel, Any]:
    torch.manual_seed(0)
    model, processor = build(TEXTS, **SIZES, **options)
    return model.eval(), processor


def batch(model: EnergyModel, processor: Any, count: int = 4) -> dict[str, torch.Tensor]:
    words = tokenize_captions(processor.tokenizer, model.config, TEXTS[:count])
    pixels = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)).clamp(-1.5, 1.5)
    return {"pixel_values": pixels, **words}


def table(constant: float) -> torch.Tensor:
    """Energies whose distribution is that of SAMPLES, whatever the constant."""
    return (constant - (torch.bincount(SAMPLES) / 10).double().log()).requires_grad_()


def test_two_terms_have_the_gradient_of_the_exact_likelihood_whatever_the_constant() -> None:
    found, true = [], []
    for constant in (0.0, 7.0):
        energy = table(constant)
        likelihood = energy[DATA].mean() + torch.logsumexp(-energy, 0)  # −log p with Z summed out
        true += torch.autograd.grad(likelihood, energy)
        found += torch.autograd.grad(energy_terms(energy[DATA], energy[SAMPLES])[0], energy)
    for one in (*found, *true):
        torch.testing.assert_close(one, true[0], atol=1e-6, rtol=0)
    assert true[0].abs().max() > 0.1
    assert energy_terms(table(0.0)[DATA], table(0.0)[SAMPLES])[0].item() == pytest.approx(
        energy_terms(table(7.0)[DATA], table(7.0)[SAMPLES])[0].item(), abs=1e-6
    )


def test_the_second_term_is_of_squares() -> None:
    assert energy_terms(torch.tensor([1.0, 3.0]), torch.tensor([2.0]))[1].item() == 9


def test_the_first_draw_is_a_softmax_down_each_column() -> None:
    torch.manual_seed(0)
    energies = torch.tensor([[0.0, 2.0], [1.0, 0.0], [-1.0, 0.5]])
    drawn = sample_negatives(energies, 4000)  # (num_draws, captions)
    for column in range(2):
        share = torch.bincount(drawn[:, column], minlength=3) / 4000
        torch.testing.assert_close(share, (-energies[:, column]).softmax(0), atol=0.035, rtol=0)


def test_langevin_reaches_a_gaussian() -> None:
    torch.manual_seed(0)
    mean, deviation = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.5])

    def energy(x: torch.Tensor) -> torch.Tensor:
        return ((x - mean) ** 2 / (2 * deviation**2)).sum(-1)

    for noise in (1.0, 0.5):
        x = langevin(energy, torch.full((10000, 2), 4.0), steps=800, step_size=0.2, noise=noise)
        torch.testing.assert_close(x.mean(0), mean, atol=0.05, rtol=0)
        torch.testing.assert_close(x.std(0) / noise, deviation, atol=0, rtol=0.05)


def test_langevin_without_noise_goes_downhill_and_stays_in_range() -> None:
    x = torch.tensor([[4.0], [-3.0]], requires_grad=True)
    with torch.no_grad():  # as evaluation calls it
        one = langevin(lambda x: 3 * x[:, 0], x, steps=2, step_size=1.0, noise=0.0, low=-2.0)
    assert one.tolist() == [[1.0], [-2.0]] and not one.requires_grad and x.grad is None


def test_without_steps_the_expected_gradient_is_info_nce() -> None:
    """Over all num_draws: caption j starts at i with p_ij; the others start at their own pictures and give nothing."""
    model, processor = made(langevin_steps=0, energy_penalty=0.0)
    given = batch(model, processor)
    parameters = list(model.parameters())
    image, text = model.embed(**given)
    logits = model.scale * image @ text.T
    true = torch.autograd.grad(F.cross_entropy(logits.T, torch.arange(4)), parameters)
    found = [torch.zeros_like(p) for p in parameters]
    for j in range(4):
        for i, chance in enumerate(logits[:, j].softmax(0).tolist()):
            start = torch.arange(4).index_fill(0, torch.tensor(j), i)[None]
            for total, part in zip(
                found, torch.autograd.grad(model(**given, start=start).loss, parameters), strict=True
            ):
                total += chance * part
    for one, other in zip(found, true, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert max(float(t.abs().max()) for t in true) > 1e-2


def test_the_loss_is_of_pairs_and_of_where_the_chains_end() -> None:
    model, processor = made(langevin_steps=2, langevin_share=0.5, energy_penalty=0.1)
    given, start = batch(model, processor), torch.tensor([[2, 0, 1, 1], [3, 3, 0, 2]])
    out, again = (torch.manual_seed(5) and model(**given, start=start) for _ in range(2))
    with torch.no_grad():
        text = model.embed(**given)[1]
        torch.manual_seed(5)
        moved = model.sample(given["pixel_values"][start[0, :2]], text[:2])
        # Two captions have their chain's end, the other two the mean of both num_draws.
        ends = torch.cat([moved, moved, *given["pixel_values"][start[:, 2:]]])
        pictures = model.visual_projection(model.vision_model(torch.cat([given["pixel_values"], ends])).pooler_output)
        energy = -model.scale * F.cosine_similarity(pictures, torch.cat([text, text[:2], text[:2], text[2:], text[2:]]))
    plus, minus = energy.split([4, 8])
    true = plus.mean() - minus.mean() + 0.1 * ((plus**2).mean() + (minus**2).mean())
    torch.testing.assert_close(out.loss.detach(), true, atol=1e-4, rtol=1e-4)
    assert torch.equal(out.loss, again.loss) and out.parts.keys() == {"contrast", "size"}
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_samples_stay_pictures_and_leave_the_weights_alone() -> None:
    model, processor = made(langevin_steps=5, langevin_step_size=5.0, langevin_noise=0.01)
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
    assert (after < before).all()  # nearly no noise: downhill


def test_the_objective_is_measured_without_gradients_too() -> None:
    model, processor = made()
    with torch.no_grad():
        assert not model(**batch(model, processor)).loss.requires_grad


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, processor = made(langevin_share=0.25)
    given = batch(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for cls in (AutoModel, EnergyModel):
        again = cls.from_pretrained(tmp_path)
        assert type(again) is EnergyModel and again.config.langevin_share == 0.25
        for one, other in zip(again.embed(**given), model.embed(**given), strict=True):
            assert torch.equal(one, other)
    words = tokenize_captions(AutoProcessor.from_pretrained(tmp_path).tokenizer, model.config, TEXTS[:4])
    assert torch.equal(words["input_ids"], given["input_ids"])


def test_begins_at_a_stock_clip(tmp_path: Path) -> None:
    model, _ = made()
    stock = CLIPModel(CLIPConfig.from_dict(model.config.to_dict()))
    stock.save_pretrained(tmp_path)
    begun = EnergyModel.from_pretrained(tmp_path)
    assert type(begun.config) is EnergyConfig
    assert torch.equal(begun.visual_projection.weight, stock.visual_projection.weight)


@pytest.mark.parametrize("wrong", [{"langevin_share": 1.5}, {"langevin_steps": -1}, {"num_draws": 0}])
def test_options_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(Exception, match=next(iter(wrong))):
        made(**wrong)
