"""CLIP: its loss against transformers, the terms of SLIP and NegCLIP, and checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel

from models.contrastive import clip
from models.contrastive.losses import clip_loss, nt_xent
from models.zoo import ZOO
from vlmflow.inference.inputs import tokenize_captions

TEXTS = ["a red circle left of a blue star", "two green crosses", "a blue star", "a red circle"] * 3
SIZES = {
    "image_size": 32, "patch_size": 8, "vision_hidden_size": 32, "vision_layers": 2, "text_hidden_size": 16,
    "text_layers": 1,
    "projection_dim": 24, "head_dim": 16, "text_length": 16,
}  # fmt: skip
SLIP = {"slip_weight": 0.5, "slip_hidden_size": 64, "slip_projection_dim": 8}


def build_model(**options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return clip.build(TEXTS, **SIZES, **options)


def batch(model: Any, processor: Any, texts: list[str] = TEXTS) -> dict[str, torch.Tensor]:
    pixels = torch.randn(len(texts), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels, **tokenize_captions(processor.tokenizer, model.config, texts)}


def stock(model: clip.CLIP) -> CLIPModel:
    """Return transformers' class with the same weights."""
    towers = {name: getattr(model.config, name).to_dict() for name in ("text_config", "vision_config")}
    other = CLIPModel(CLIPConfig(**towers, projection_dim=model.projection_dim))
    other.load_state_dict(model.state_dict(), strict=False)
    return other


def test_the_loss_equals_that_of_transformers() -> None:
    model, processor = build_model()
    given = batch(model, processor)
    found, expected = model(**given), stock(model)(**given, return_loss=True).loss
    torch.testing.assert_close(found.loss, expected)
    assert set(found.parts) == {"contrast"} and found.parts["contrast"] is found.loss
    assert model.logit_scale.item() == pytest.approx(2.6592)


def test_text_is_pooled_at_its_last_token_and_ignores_padding() -> None:
    model, processor = build_model()
    model.eval()
    short = tokenize_captions(processor.tokenizer, model.config, ["a blue star"])
    padded = tokenize_captions(processor.tokenizer, model.config, ["a blue star", "a red circle left of a blue star"])
    one, two = (model.get_text_features(**ids).pooler_output[0] for ids in (short, padded))
    torch.testing.assert_close(one, two)
    last = model.text_model(**short).last_hidden_state[:, -1]
    torch.testing.assert_close(model.text_projection(last)[0], one)


def test_the_scale_is_clamped_to_100() -> None:
    model, processor = build_model()
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    assert model.scale.item() == pytest.approx(100)
    given = batch(model, processor)
    image, text = model.embed(**given)
    torch.testing.assert_close(model(**given).loss, clip_loss(image, text, torch.tensor(100.0)))


def test_checkpoints_load_from_transformers_and_into_transformers(tmp_path: Path) -> None:
    model, processor = build_model(micro_batch=3, logits_chunk=2)
    given = batch(model, processor)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    again = ZOO["clip"].model_class.from_pretrained(tmp_path / "ours")
    assert again.config.micro_batch == 3 and again.config.logits_chunk == 2
    torch.testing.assert_close(again(**given).loss, model(**given).loss)
    other = AutoModel.from_pretrained(tmp_path / "ours")
    assert type(other) is CLIPModel
    torch.testing.assert_close(other(**given, return_loss=True).loss, model(**given).loss)
    ids = AutoProcessor.from_pretrained(tmp_path / "ours").tokenizer(TEXTS[:2])["input_ids"]
    assert ids == processor.tokenizer(TEXTS[:2])["input_ids"]
    stock(model).save_pretrained(tmp_path / "stock")
    back = ZOO["clip"].model_class.from_pretrained(tmp_path / "stock")
    assert back.config.micro_batch == back.config.slip_weight == 0
    torch.testing.assert_close(back(**given).loss, model(**given).loss)


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(TypeError, match="micro_bach"):
        clip.build(TEXTS, micro_bach=3)


def test_slip_adds_the_loss_of_two_views() -> None:
    model, processor = build_model(**SLIP)
    given = batch(model, processor)
    views = torch.randn(len(TEXTS), 2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = model(**given, views=views)
    torch.testing.assert_close(found.loss, found.parts["contrast"] + 0.5 * found.parts["views"])
    heads = []
    for view in views.unbind(1):
        x = model.vision_model(view).pooler_output
        for layer in (0, 3):  # linear, batch norm, ReLU
            x = x @ model.head[layer].weight.T
            x = F.relu((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt())
        heads.append(F.normalize(x @ model.head[6].weight.T, dim=-1))
    torch.testing.assert_close(found.parts["views"], nt_xent(heads[0], heads[1], 0.1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.parts["contrast"], stock(model)(**given, return_loss=True).loss)
    found.parts["views"].backward()
    assert model.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    assert model.visual_projection.weight.grad is None  # the head is applied before the projection
    assert model.head[0].weight.std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_with_slip_weight_zero_there_is_no_head_and_views_are_ignored() -> None:
    model, processor = build_model()
    given = batch(model, processor)
    assert not [name for name in model.state_dict() if name.startswith("head")]
    views = torch.randn(len(TEXTS), 2, 3, 32, 32)
    assert set(model(**given, views=views).parts) == {"contrast"}


def test_the_slip_head_is_saved_and_its_term_is_omitted_without_views(tmp_path: Path) -> None:
    model, processor = build_model(**SLIP)
    given = batch(model, processor)
    assert set(model(**given).parts) == {"contrast"}
    views = torch.randn(len(TEXTS), 2, 3, 32, 32)
    model(**given, views=views)  # updates the head's running statistics
    model.eval().save_pretrained(tmp_path)
    again = ZOO["clip"].model_class.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**given, views=views).loss, model(**given, views=views).loss)


def test_negative_captions_are_added_to_the_candidates_of_every_image() -> None:
    model, processor = build_model()
    given = batch(model, processor)
    wrong = ["a blue circle left of a red star", "three green crosses", "a red star", "a blue circle"] * 4
    more = tokenize_captions(processor.tokenizer, model.config, wrong)
    negatives = {f"negative_{name}": value for name, value in more.items()}
    found = model(**given, **negatives)
    output = stock(model)(
        pixel_values=given["pixel_values"], **tokenize_captions(processor.tokenizer, model.config, [*TEXTS, *wrong])
    )
    target = torch.arange(len(TEXTS))
    rows = F.cross_entropy(output.logits_per_image, target)  # (N, N + N·M)
    columns = F.cross_entropy(output.logits_per_text[: len(TEXTS)], target)  # (N, N)
    torch.testing.assert_close(found.loss, (rows + columns) / 2)
    assert found.loss > model(**given).loss


def test_default_sizes_are_the_papers() -> None:
    with torch.device("meta"):
        model, _ = clip.build(TEXTS, vocab_size=49408)
    assert sum(p.numel() for p in model.parameters()) == 149_620_737  # openai/clip-vit-base-patch16
    assert model.config.get_text_config().max_position_embeddings == 77
