"""NCE on a table of five states with a known optimum, and on pairs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel

from models.contrastive.nce import NCE, NCEConfig, build, nce_terms, sample_noise_captions
from vlmflow.inference.inputs import tokenize_captions

TEXTS = ["a red circle", "a blue star left of a red circle", "two green crosses", "a red star"] * 3
SIZES = {
    "image_size": 16, "patch_size": 8, "vision_hidden_size": 16, "vision_layers": 1, "text_hidden_size": 12,
    "text_layers": 1,
    "projection_dim": 10, "head_dim": 4, "text_length": 16,
}  # fmt: skip
# Each state occurs in proportion to its probability, so the mean over these samples is the exact expectation.
DATA = torch.tensor([0] * 1 + [1] * 2 + [2] * 3 + [3] * 4 + [4] * 5)
NOISE = torch.tensor([0] * 4 + [1] * 3 + [2] * 1 + [3] * 1 + [4] * 1)
P_DATA, P_NOISE = torch.bincount(DATA) / 15, torch.bincount(NOISE) / 10


def build_model(**options: Any) -> tuple[NCE, Any]:
    torch.manual_seed(0)
    model, processor = build(TEXTS, **SIZES, **options)
    return model.eval(), processor


def batch(model: NCE, processor: Any, count: int = 5) -> dict[str, torch.Tensor]:
    tokens = tokenize_captions(processor.tokenizer, model.config, TEXTS[:count])
    pixels = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels, **tokens}


@pytest.mark.parametrize("ratio", [1, 7])
def test_the_optimum_recovers_the_data_distribution_and_the_normaliser(ratio: int) -> None:
    # log p̃ is constrained to sum to 0 and is far from normalised, so that c must learn all of −log Z.
    table, c = torch.zeros(5, dtype=torch.double, requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([table, c], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        odds = table - table.mean() + c - P_NOISE.log()
        data_term, noise_term = nce_terms(odds[DATA], odds[NOISE], ratio)
        loss = data_term + noise_term
        loss.backward()
        return loss

    optimizer.step(closure)
    log_p = (table - table.mean()).detach()
    torch.testing.assert_close(log_p + c.detach(), P_DATA.double().log(), atol=1e-4, rtol=1e-4)
    assert c.item() == pytest.approx(-log_p.exp().sum().log().item(), abs=1e-4)
    assert abs(c.item()) > 0.5


def test_each_term_is_log_two_for_a_model_equal_to_the_noise() -> None:
    data_term, noise_term = nce_terms(torch.zeros(6), torch.zeros(6), 1)
    assert data_term.item() == noise_term.item() == pytest.approx(math.log(2))


def test_terms_equal_the_formulas() -> None:
    data, noise, ratio = [0.3, -1.2], [0.5, 2.0, -0.7, 0.1], 2
    expected = -sum(math.log(1 / (1 + math.exp(-(d - math.log(ratio))))) for d in data)
    expected -= sum(math.log(1 - 1 / (1 + math.exp(-(n - math.log(ratio))))) for n in noise)
    found = sum(nce_terms(torch.tensor(data), torch.tensor(noise), ratio))
    assert float(found) == pytest.approx(expected / len(data), rel=1e-5)  # normalised per data sample


def test_noise_captions_are_distinct_other_captions_drawn_uniformly() -> None:
    torch.manual_seed(0)
    found = torch.stack([sample_noise_captions(5, 3) for _ in range(2000)])  # (draws, pairs, ν)
    assert not (found == torch.arange(5)[:, None]).any()
    assert (found.sort(-1).values.diff(dim=-1) > 0).all()
    for row in range(5):
        counts = torch.bincount(found[:, row].flatten(), minlength=5).double()
        expected = torch.full((5,), 2000 * 3 / 4).index_fill(0, torch.tensor(row), 0)
        assert (counts - expected).abs().max() < 5 * math.sqrt(2000 * 3 / 16)
    assert sample_noise_captions(5, 4).sort(1).values.tolist() == [[c for c in range(5) if c != r] for r in range(5)]


def test_the_loss_of_pairs_and_the_gradient_of_the_normaliser_equal_the_formula() -> None:
    model, processor = build_model(noise_ratio=2, log_normaliser=-0.5)
    given = batch(model, processor)
    noise = torch.tensor([[1, 2], [0, 4], [3, 1], [0, 2], [3, 0]])
    out = model(**given, noise_indices=noise)
    with torch.no_grad():
        image, text = model.visual_projection.weight, model.text_projection.weight
        image = model.vision_model(given["pixel_values"]).pooler_output @ image.T
        text = model.text_model(given["input_ids"], given["attention_mask"]).pooler_output @ text.T
    expected, slope = 0.0, 0.0
    for i in range(5):
        for j, is_data in [(i, True), *((int(j), False) for j in noise[i])]:
            cos = float(image[i] @ text[j] / image[i].norm() / text[j].norm())
            probability = 1 / (1 + math.exp(-(math.exp(2.6592) * cos - 0.5 - math.log(2))))
            expected -= math.log(probability if is_data else 1 - probability) / 5
            slope += (probability - is_data) / 5
    assert out.loss.item() == pytest.approx(expected, rel=1e-4)
    assert sum(p.item() for p in out.parts.values()) == pytest.approx(out.loss.item())
    out.loss.backward()
    assert model.log_normaliser.grad.item() == pytest.approx(slope, abs=1e-4)  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.parameters())


def test_a_noise_ratio_above_the_batch_size_uses_all_other_captions() -> None:
    model, processor = build_model(noise_ratio=1000)
    given = batch(model, processor)
    others = torch.tensor([[c for c in range(5) if c != r] for r in range(5)])
    torch.testing.assert_close(model(**given).loss, model(**given, noise_indices=others).loss)


def test_a_saved_model_gives_equal_outputs_when_loaded(tmp_path: Path) -> None:
    model, processor = build_model(noise_ratio=2)
    with torch.no_grad():
        model.log_normaliser.fill_(-3.0)
    given, noise = batch(model, processor), torch.tensor([[1], [2], [3], [4], [0]])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for cls in (AutoModel, NCE):
        again = cls.from_pretrained(tmp_path)
        assert type(again) is NCE and again.config.noise_ratio == 2
        assert torch.equal(again(**given, noise_indices=noise).loss, model(**given, noise_indices=noise).loss)
    tokens = tokenize_captions(AutoProcessor.from_pretrained(tmp_path).tokenizer, model.config, TEXTS[:5])
    assert torch.equal(tokens["input_ids"], given["input_ids"])


def test_weights_of_the_stock_clip_load(tmp_path: Path) -> None:
    source, _ = build_model()
    stock = CLIPModel(CLIPConfig.from_dict(source.config.to_dict()))
    stock.save_pretrained(tmp_path)
    model = NCE.from_pretrained(tmp_path)
    assert type(model.config) is NCEConfig and model.log_normaliser.item() == 0
    assert torch.equal(model.visual_projection.weight, stock.visual_projection.weight)


def test_a_noise_ratio_of_zero_is_refused() -> None:
    with pytest.raises(Exception, match="noise_ratio must be at least 1"):
        build_model(noise_ratio=0)
