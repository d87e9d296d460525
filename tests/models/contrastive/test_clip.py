"""CLIP: its objective and where it comes from, SLIP's and NegCLIP's terms, and what a folder keeps."""

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


def built(**options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return clip.build(TEXTS, **SIZES, **options)


def batch(model: Any, processor: Any, texts: list[str] = TEXTS) -> dict[str, torch.Tensor]:
    pixels = torch.randn(len(texts), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels, **tokenize_captions(processor.tokenizer, model.config, texts)}


def stock(model: clip.CLIP) -> CLIPModel:
    """transformers' own class with the same weights."""
    towers = {name: getattr(model.config, name).to_dict() for name in ("text_config", "vision_config")}
    other = CLIPModel(CLIPConfig(**towers, projection_dim=model.projection_dim))
    other.load_state_dict(model.state_dict(), strict=False)
    return other


def test_the_loss_is_that_of_transformers() -> None:
    model, processor = built()
    given = batch(model, processor)
    found, true = model(**given), stock(model)(**given, return_loss=True).loss
    torch.testing.assert_close(found.loss, true)
    assert set(found.parts) == {"contrast"} and found.parts["contrast"] is found.loss
    assert model.logit_scale.item() == pytest.approx(2.6592)


def test_the_text_is_read_at_its_end_and_not_beyond() -> None:
    model, processor = built()
    model.eval()
    short = tokenize_captions(processor.tokenizer, model.config, ["a blue star"])
    padded = tokenize_captions(processor.tokenizer, model.config, ["a blue star", "a red circle left of a blue star"])
    one, two = (model.get_text_features(**ids).pooler_output[0] for ids in (short, padded))
    torch.testing.assert_close(one, two)
    last = model.text_model(**short).last_hidden_state[:, -1]
    torch.testing.assert_close(model.text_projection(last)[0], one)


def test_the_scale_stays_below_a_hundred() -> None:
    model, processor = built()
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    assert model.scale.item() == pytest.approx(100)
    given = batch(model, processor)
    image, text = model.embed(**given)
    torch.testing.assert_close(model(**given).loss, clip_loss(image, text, torch.tensor(100.0)))


def test_a_folder_of_the_stock_class_loads_and_ours_loads_there(tmp_path: Path) -> None:
    model, processor = built(micro_batch=3, logits_chunk=2)
    given = batch(model, processor)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    again = ZOO["clip"].model_class.from_pretrained(tmp_path / "ours")
    assert again.config.micro_batch == 3 and again.config.logits_chunk == 2
    torch.testing.assert_close(again(**given).loss, model(**given).loss)
    other = AutoModel.from_pretrained(tmp_path / "ours")
    assert type(other) is CLIPModel
    torch.testing.assert_close(other(**given, return_loss=True).loss, model(**given).loss)
    words = AutoProcessor.from_pretrained(tmp_path / "ours").tokenizer(TEXTS[:2])["input_ids"]
    assert words == processor.tokenizer(TEXTS[:2])["input_ids"]
    stock(model).save_pretrained(tmp_path / "stock")
    back = ZOO["clip"].model_class.from_pretrained(tmp_path / "stock")
    assert back.config.micro_batch == back.config.slip_weight == 0
    torch.testing.assert_close(back(**given).loss, model(**given).loss)


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(TypeError, match="micro_bach"):
        clip.build(TEXTS, micro_bach=3)


def test_slip_adds_the_agreement_of_two_views() -> None:
    model, processor = built(**SLIP)
    given = batch(model, processor)
    seen = torch.randn(len(TEXTS), 2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = model(**given, views=seen)
    torch.testing.assert_close(found.loss, found.parts["contrast"] + 0.5 * found.parts["views"])
    heads = []
    for one in seen.unbind(1):
        x = model.vision_model(one).pooler_output
        for layer in (0, 3):  # linear, batch norm, ReLU
            x = x @ model.head[layer].weight.T
            x = F.relu((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt())
        heads.append(F.normalize(x @ model.head[6].weight.T, dim=-1))
    torch.testing.assert_close(found.parts["views"], nt_xent(heads[0], heads[1], 0.1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.parts["contrast"], stock(model)(**given, return_loss=True).loss)
    found.parts["views"].backward()
    assert model.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    assert model.visual_projection.weight.grad is None  # the head is before it
    assert model.head[0].weight.std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_without_its_weight_there_is_no_head_and_no_view() -> None:
    model, processor = built()
    given = batch(model, processor)
    assert not [name for name in model.state_dict() if name.startswith("head")]
    seen = torch.randn(len(TEXTS), 2, 3, 32, 32)
    assert set(model(**given, views=seen).parts) == {"contrast"}


def test_the_head_is_saved_and_without_views_its_term_is_left_out(tmp_path: Path) -> None:
    model, processor = built(**SLIP)
    given = batch(model, processor)
    assert set(model(**given).parts) == {"contrast"}
    seen = torch.randn(len(TEXTS), 2, 3, 32, 32)
    model(**given, views=seen)  # moves the head's running statistics
    model.eval().save_pretrained(tmp_path)
    again = ZOO["clip"].model_class.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**given, views=seen).loss, model(**given, views=seen).loss)


def test_negative_captions_join_the_texts_that_a_picture_chooses_from() -> None:
    model, processor = built()
    given = batch(model, processor)
    wrong = ["a blue circle left of a red star", "three green crosses", "a red star", "a blue circle"] * 4
    more = tokenize_captions(processor.tokenizer, model.config, wrong)
    negatives = {f"negative_{name}": value for name, value in more.items()}
    found = model(**given, **negatives)
    every = stock(model)(
        pixel_values=given["pixel_values"], **tokenize_captions(processor.tokenizer, model.config, [*TEXTS, *wrong])
    )
    target = torch.arange(len(TEXTS))
    rows = F.cross_entropy(every.logits_per_image, target)  # (N, N + N·M)
    columns = F.cross_entropy(every.logits_per_text[: len(TEXTS)], target)  # (N, N)
    torch.testing.assert_close(found.loss, (rows + columns) / 2)
    assert found.loss > model(**given).loss


def test_large_sizes_are_the_papers() -> None:
    with torch.device("meta"):
        model, _ = clip.build(TEXTS, vocab_size=49408)
    assert sum(p.numel() for p in model.parameters()) == 149_620_737  # openai/clip-vit-base-patch16
    assert model.config.get_text_config().max_position_embeddings == 77
