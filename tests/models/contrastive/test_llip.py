"""Llip against loops over pairs, heads and tokens, and its special case SigLIP."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel

from models.contrastive.llip import Llip, LlipConfig, build
from models.contrastive.losses import siglip_loss
from vlmflow.inference.inputs import tokenize_captions
from vlmflow.training.launcher import launch

TEXTS = ["a red circle", "a blue star left of a red circle", "two green crosses", "a red star"] * 3
SIZES = {
    "image_size": 16, "patch_size": 8, "vision_hidden_size": 16, "vision_layers": 2, "text_hidden_size": 12,
    "text_layers": 1,
    "projection_dim": 10, "head_dim": 4, "text_length": 16, "mixture_heads": 2, "mixture_temperature": 1.5,
    "logit_bias": -2.0,
}  # fmt: skip


def build_model(**options: Any) -> tuple[Llip, Any]:
    torch.manual_seed(0)
    model, processor = build(TEXTS, **{**SIZES, "mixture_tokens": 3, **options})
    return model.eval(), processor


def batch(model: Llip, processor: Any, count: int = 4) -> dict[str, torch.Tensor]:
    tokens = tokenize_captions(processor.tokenizer, model.config, TEXTS[:count])
    pixels = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels, **tokens}


def test_every_pair_has_its_own_image_vector_from_cross_attention() -> None:
    model, processor = build_model()
    given = batch(model, processor)
    with torch.no_grad():
        found, weights = model.similarity(**given), model.mixture_weights(**given)
        mixture = model.mixture_tokens(given["pixel_values"])
        captions = model.text_model(given["input_ids"], given["attention_mask"]).pooler_output
        mixer = model.mixer
        for i in range(4):
            for j in range(4):
                query, keys, values = mixer.query(captions[j]), mixer.key(mixture[i]), mixer.value(mixture[i])
                heads = []
                for head in (slice(0, 8), slice(8, 16)):
                    scores = [math.exp(float(query[head] @ keys[k, head]) / 1.5) for k in range(3)]
                    share = [score / sum(scores) for score in scores]
                    assert weights[i, j, len(heads)].tolist() == pytest.approx(share, abs=1e-5)
                    heads.append(sum(share[k] * values[k, head] for k in range(3)))
                image, text = model.visual_projection(torch.cat(heads)), model.text_projection(captions[j])
                expected = 10 * float(image @ text / image.norm() / text.norm()) - 2
                assert found[i, j].item() == pytest.approx(expected, abs=1e-4)
    assert weights.sum(-1).allclose(torch.ones(4, 4, 2))
    assert weights.std(1).max() > 1e-3  # weights depend on the caption


def test_the_loss_is_a_logistic_regression_over_all_pairs() -> None:
    model, processor = build_model()
    given = batch(model, processor)
    logits, expected = model.similarity(**given).tolist(), 0.0
    for i in range(4):
        expected += sum(math.log1p(math.exp(-logits[i][j] if i == j else logits[i][j])) for j in range(4)) / 4
    assert model(**given).loss.item() == pytest.approx(expected, rel=1e-5)


def test_with_one_mixture_token_the_loss_is_siglip_on_its_vector() -> None:
    model, processor = build_model(mixture_tokens=1)
    given = batch(model, processor)
    with torch.no_grad():
        assert model.mixture_weights(**given).eq(1).all()
        stock = model.vision_model(given["pixel_values"]).pooler_output  # as in CLIP: of the class token
        image = F.normalize(model.visual_projection(model.mixer.value(stock)), dim=-1)
        text = model.text_model(given["input_ids"], given["attention_mask"]).pooler_output
        text = F.normalize(model.text_projection(text), dim=-1)
        expected = siglip_loss(image, text, torch.tensor(10.0), torch.tensor(-2.0))
        torch.testing.assert_close(model(**given).loss, expected)
        torch.testing.assert_close(model.similarity(**given), 10 * image @ text.T - 2)


def test_scores_do_not_depend_on_the_order_of_mixture_tokens_and_equal_captions_have_equal_scores() -> None:
    model, processor = build_model(mixture_tokens=5)
    given = batch(model, processor, 6)  # captions 4 and 5 equal captions 0 and 1
    with torch.no_grad():
        scores, weights = model.similarity(**given), model.mixture_weights(**given)
        torch.testing.assert_close(scores[:, 4:], scores[:, :2])
        assert (scores[:, 0] - scores[:, 1]).abs().min() > 1e-4
        model.mixer.tokens.copy_(model.mixer.tokens[[2, 0, 3, 1]].clone())
        torch.testing.assert_close(model.similarity(**given), scores, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.mixture_weights(**given), weights[..., [0, 3, 1, 4, 2]], atol=1e-5, rtol=1e-4)


def test_attention_maps_are_the_attention_of_the_mixture_tokens_weighted_by_the_caption() -> None:
    model, processor = build_model()
    given, attentions = batch(model, processor), []
    model.set_attn_implementation("eager")  # the only implementation that returns weights
    last: Any = model.vision_model.encoder.layers[-1].self_attn
    last.register_forward_hook(lambda _, __, out: attentions.append(out[1].mean(1)))
    with torch.no_grad():
        mixture_weights = model.mixture_weights(**given).mean(2)  # (N, N, K)
        (weights,) = attentions
        maps = model.attention_maps(**given)
    assert maps.shape == (4, 1, 2, 2)
    for i in range(4):
        for patch in range(4):
            expected = sum(float(mixture_weights[i, i, k] * weights[i, k, 3 + patch]) for k in range(3))
            assert maps[i, 0, patch // 2, patch % 2].item() == pytest.approx(expected, abs=1e-6)
    assert maps.std() > 1e-4
    with torch.no_grad():
        other = model.attention_maps(
            given["pixel_values"], given["input_ids"].roll(1, 0), given["attention_mask"].roll(1, 0)
        )
    assert not torch.allclose(maps, other), "the map must depend on the caption"


def gradients(model: Llip, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**given).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("logits_chunk", "micro_batch"), [(1, 0), (3, 2), (50, 50)])
def test_logits_chunk_and_micro_batch_do_not_change_the_results(logits_chunk: int, micro_batch: int) -> None:
    model, processor = build_model()
    given = batch(model, processor, 7)
    loss, scores, expected = model(**given).loss, model.similarity(**given), gradients(model, given)
    model.config.logits_chunk = logits_chunk
    model.config.micro_batch = micro_batch
    torch.testing.assert_close(model(**given).loss, loss)
    torch.testing.assert_close(model.similarity(**given), scores)
    found = gradients(model, given)
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()  # every parameter has a gradient
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)


def _train_on_half_a_batch(folder: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    model, processor = build_model(logits_chunk=2)
    rank, given = dist.get_rank(), batch(model, processor, 6)
    given = {name: tensor.chunk(2)[rank] for name, tensor in given.items()}
    torch.save((model(**given).loss.detach(), gradients(model, given)), Path(folder) / str(rank))
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_gradients_of_a_single_process(
    tmp_path: Path, apart: Callable[..., Any]
) -> None:
    apart(launch, _train_on_half_a_batch, 2, str(tmp_path))
    model, processor = build_model()
    given = batch(model, processor, 6)
    (one, found), (other, more) = (torch.load(tmp_path / rank, weights_only=True) for rank in "01")
    torch.testing.assert_close((one + other) / 2, model(**given).loss.detach())
    for name, expected in gradients(model, given).items():
        torch.testing.assert_close((found[name] + more[name]) / 2, expected, atol=1e-5, rtol=1e-4)


def test_a_saved_model_gives_equal_outputs_when_loaded(tmp_path: Path) -> None:
    model, processor = build_model()
    with torch.no_grad():
        model.logit_bias.fill_(-3.0)
    given = batch(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for cls in (AutoModel, Llip):
        again = cls.from_pretrained(tmp_path)
        assert type(again) is Llip and type(again.config) is LlipConfig
        assert torch.equal(again.similarity(**given), model.similarity(**given))
    tokens = tokenize_captions(AutoProcessor.from_pretrained(tmp_path).tokenizer, model.config, TEXTS[:4])
    assert torch.equal(tokens["input_ids"], given["input_ids"])


def test_weights_of_the_stock_clip_load(tmp_path: Path) -> None:
    source, processor = build_model()
    torch.manual_seed(1)
    sizes = source.config.to_dict()
    parts = {name: sizes[name] for name in ("text_config", "vision_config", "projection_dim")}
    stock = CLIPModel(CLIPConfig(**parts)).eval()
    stock.save_pretrained(tmp_path)
    model = Llip.from_pretrained(tmp_path, mixture_heads=2)
    given = batch(model, processor)
    assert model.config.mixture_tokens == 64 and model.logit_bias.item() == -10
    assert 0.5 < model.mixer.tokens.std().item() * 4 < 2 and 0.5 < model.mixer.query.weight.std().item() * 12**0.5 < 2
    torch.testing.assert_close(
        model.text_features(given["input_ids"]), stock.text_model(given["input_ids"]).pooler_output
    )
    assert model(**given).loss.isfinite()


@pytest.mark.parametrize("invalid", [{"mixture_tokens": 0}, {"mixture_heads": 3}])
def test_invalid_sizes_are_refused(invalid: dict[str, int]) -> None:
    with pytest.raises(Exception, match=next(iter(invalid))):
        build_model(**invalid)
