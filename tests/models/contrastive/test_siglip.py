"""SigLIP: its loss against transformers, its initial values, and checkpoints."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoProcessor, SiglipConfig, SiglipModel

from models.contrastive import siglip
from models.zoo import ZOO
from vlmflow.inference.inputs import tokenize_captions

TEXTS = ["a red circle left of a blue star", "two green crosses", "a blue star", "a red circle"] * 3
SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "layers": 2,
    "heads": 2,
    "text_layers": 1,
}


def build_model(**options: Any) -> tuple[siglip.SigLIP, Any]:
    torch.manual_seed(0)
    return siglip.build(TEXTS, **SIZES, **options)


def batch(model: Any, processor: Any) -> dict[str, torch.Tensor]:
    pixels = torch.randn(len(TEXTS), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels, **tokenize_captions(processor.tokenizer, model.config, TEXTS)}


def stock(model: siglip.SigLIP) -> SiglipModel:
    """Return transformers' class with the same weights."""
    towers = {name: getattr(model.config, name).to_dict() for name in ("text_config", "vision_config")}
    other = SiglipModel(SiglipConfig(**towers))
    other.load_state_dict(model.state_dict())
    return other


def test_scale_and_bias_start_at_the_papers_values() -> None:
    model, _ = build_model()
    assert model.logit_scale.item() == pytest.approx(math.log(10)) and model.logit_bias.item() == -10
    other, _ = build_model(logit_scale=5.0, logit_bias=-4.0)
    assert other.logit_scale.exp().item() == pytest.approx(5) and other.logit_bias.item() == -4


def test_the_loss_equals_that_of_transformers() -> None:
    model, processor = build_model(text_length=16)
    given = batch(model, processor)
    found, expected = model(**given), stock(model)(**given, return_loss=True).loss
    torch.testing.assert_close(found.loss, expected)
    assert set(found.parts) == {"contrast"}


def test_captions_are_padded_to_the_full_length() -> None:
    for length in (16, 64):
        model, processor = build_model(text_length=length)
        given = batch(model, processor)
        assert given["input_ids"].shape == (len(TEXTS), length) and "attention_mask" not in given
        assert given["input_ids"][1, -1] == processor.tokenizer.pad_token_id


def test_checkpoints_load_from_transformers_and_into_transformers(tmp_path: Path) -> None:
    model, processor = build_model(micro_batch=3, logits_chunk=2, text_length=16)
    with torch.no_grad():
        model.logit_bias.fill_(-3.0)
    given = batch(model, processor)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    again = ZOO["siglip"].model_class.from_pretrained(tmp_path / "ours")
    assert again.config.micro_batch == 3 and again.config.logits_chunk == 2 and again.logit_bias.item() == -3
    torch.testing.assert_close(again(**given).loss, model(**given).loss)
    other = AutoModel.from_pretrained(tmp_path / "ours")
    assert type(other) is SiglipModel
    torch.testing.assert_close(other(**given, return_loss=True).loss, model(**given).loss)
    ids = AutoProcessor.from_pretrained(tmp_path / "ours").tokenizer(TEXTS[:2])["input_ids"]
    assert ids == processor.tokenizer(TEXTS[:2])["input_ids"]
    stock(model).save_pretrained(tmp_path / "stock")
    back = ZOO["siglip"].model_class.from_pretrained(tmp_path / "stock")
    assert back.config.micro_batch == 0 and back.logit_bias.item() == -3
    torch.testing.assert_close(back(**given).loss, model(**given).loss)


def test_default_sizes_are_the_papers() -> None:
    with torch.device("meta"):
        model, _ = siglip.build(TEXTS, vocab_size=32_000)
    assert sum(p.numel() for p in model.parameters()) == 203_155_970  # google/siglip-base-patch16-224
