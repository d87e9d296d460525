from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoProcessor, VisualBertConfig, VisualBertForPreTraining

from models.masked.grid_features import GridFeatures
from models.masked.token_masking import IGNORE_INDEX, mask_tokens, shift_captions
from models.masked.visual_bert import VisualBert, build
from models.zoo import ZOO

TEXTS = ["a red circle left of a blue star", "two green crosses", "a blue circle"] * 3
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "region_dim": 24,
    "hidden_size": 32,
    "layers": 2,
    "head_dim": 16,
    "text_length": 16,
    "initializer_range": 0.15,
    "dropout": 0.0,
}


@pytest.fixture
def model_processor_batch():
    torch.manual_seed(0)
    model, processor = build(TEXTS, **SIZES)
    batch = processor.tokenizer(TEXTS[:3], padding=True, return_tensors="pt", return_token_type_ids=False)
    return model.eval(), processor, {**batch, "pixel_values": torch.randn(3, 3, 32, 32)}


def test_the_sequence_is_words_followed_by_regions(model_processor_batch):
    model, _, batch = model_processor_batch
    regions = model.regions(batch["pixel_values"])
    assert regions.shape == (3, 16, 24)
    output = model.visual_bert(batch["input_ids"], attention_mask=batch["attention_mask"], visual_embeds=regions)
    length = batch["input_ids"].shape[1]
    assert output.last_hidden_state.shape == (3, length + 16, 32)
    expected = model.cls.predictions(output.last_hidden_state)[:, :length]
    torch.testing.assert_close(model.fill_mask(**batch), expected)


def test_attention_maps_are_the_last_layers_attention_to_the_regions(model_processor_batch):
    model, _, batch = model_processor_batch
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    output = model.visual_bert(**given, visual_embeds=model.regions(batch["pixel_values"]), output_hidden_states=True)
    attention, x = model.visual_bert.encoder.layer[-1].attention.self, output.hidden_states[-2]
    query, key = (f(x).unflatten(-1, (2, 16)).transpose(1, 2) for f in (attention.query, attention.key))
    visible = torch.cat([batch["attention_mask"], torch.ones(3, 16)], 1)[:, None, None].bool()
    weights = (query @ key.mT / 4).masked_fill(~visible, -1e9).softmax(-1).mean(1)  # (N, L + 16, L + 16)
    length, maps = batch["input_ids"].shape[1], model.attention_maps(**batch)
    assert maps.shape == (3, length, 4, 4)
    torch.testing.assert_close(maps[:, :, 2, 1], weights[:, :length, length + 4 * 2 + 1])
    torch.testing.assert_close(maps.flatten(2), weights[:, :length, length:])


def test_the_order_of_regions_does_not_change_the_text_outputs(model_processor_batch):
    model, _, batch = model_processor_batch
    regions = model.regions(batch["pixel_values"])
    words, fits = model.encode_pair(regions, batch["input_ids"], batch["attention_mask"])
    moved, fits_moved = model.encode_pair(regions[:, torch.randperm(16)], batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(moved, words, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fits_moved, fits, atol=1e-5, rtol=1e-4)
    other = model.encode_pair(regions.flip(0), batch["input_ids"], batch["attention_mask"])[0]
    assert not torch.allclose(other, words, atol=1e-3)  # but their content does


def test_the_position_of_a_patch_changes_its_features(model_processor_batch):
    model, _, batch = model_processor_batch
    mirrored = {**batch, "pixel_values": batch["pixel_values"].flip(-1)}
    assert not torch.allclose(model.fill_mask(**batch), model.fill_mask(**mirrored), atol=1e-3)
    blank = torch.zeros(1, 3, 32, 32)
    regions = model.regions(blank)[0]
    assert len({tuple(row.tolist()) for row in regions.round(decimals=3)}) == 16


@pytest.mark.parametrize("num_negatives", [1, 2])
def test_the_loss_equals_that_of_the_stock_class(model_processor_batch, num_negatives: int):
    """Call the stock forward once for each caption, with label −100 for regions and for mismatched captions."""
    model, _, batch = model_processor_batch
    model.config.num_negatives = num_negatives
    torch.manual_seed(3)
    found = model(**batch)
    torch.manual_seed(3)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    texts = [(ids, mask, None), *(shift_captions(ids, mask) for _ in range(num_negatives))]
    options = {"mask_token_id": model.config.mask_token_id, "special_ids": tuple(model.config.special_token_ids)}
    masked_ids, labels = mask_tokens(
        torch.cat([t[0] for t in texts]),
        torch.cat([t[1] for t in texts]),
        vocab_size=model.config.vocab_size,
        **options,
    )
    regions, region_labels = model.regions(batch["pixel_values"]), torch.full((3, 16), IGNORE_INDEX)
    match = []
    for i, (_, given, _) in enumerate(texts):
        rows = slice(3 * i, 3 * i + 3)
        forward: Any = VisualBertForPreTraining.forward
        stock = forward(
            model,
            masked_ids[rows],
            attention_mask=given,
            visual_embeds=regions,
            visual_attention_mask=torch.ones(3, 16),
            labels=torch.cat([labels[rows], region_labels], dim=1),
        )
        if i == 0:
            torch.testing.assert_close(found.parts["mlm"], stock.loss)
        match.append(F.cross_entropy(stock.seq_relationship_logits, torch.full((3,), int(i > 0))))
    torch.testing.assert_close(found.parts["itm"], (match[0] + sum(match[1:]) / num_negatives) / 2)
    torch.testing.assert_close(found.loss, found.parts["mlm"] + found.parts["itm"])


def test_a_range_of_mask_probabilities_is_saved(tmp_path: Path):
    model, _ = build(TEXTS, **SIZES, mask_probability=(0.2, 0.8))
    model.save_pretrained(tmp_path)
    assert VisualBert.from_pretrained(tmp_path).config.mask_probability == [0.2, 0.8]


def test_equal_captions_are_not_negatives(model_processor_batch):
    model, processor, batch = model_processor_batch
    same = processor.tokenizer([TEXTS[0]] * 3, return_tensors="pt", return_token_type_ids=False)
    torch.manual_seed(0)
    with torch.no_grad():
        model.cls.seq_relationship.weight.zero_()
        model.cls.seq_relationship.bias.copy_(torch.tensor([2.0, 0.0]))  # predicts "match" for every pair
    true_pair_loss = float(F.softplus(torch.tensor(-2.0)))
    assert model(batch["pixel_values"], **same).parts["itm"].item() == pytest.approx(true_pair_loss / 2)  # no negatives
    assert model(**batch).parts["itm"].item() == pytest.approx((true_pair_loss + true_pair_loss + 2) / 2)


def test_match_score_is_the_log_odds_of_the_first_class(model_processor_batch):
    model, _, batch = model_processor_batch
    with torch.no_grad():
        model.cls.seq_relationship.weight.zero_()
        model.cls.seq_relationship.bias.copy_(torch.tensor([1.5, -1.0]))
    assert model.match_score(**batch).tolist() == pytest.approx([2.5] * 3)


def test_the_mlm_loss_reaches_the_pixels_and_every_weight_gets_a_gradient(model_processor_batch):
    model, _, batch = model_processor_batch
    pixels = batch["pixel_values"].requires_grad_()
    found = model(**batch)
    assert torch.autograd.grad(found.parts["mlm"], pixels, retain_graph=True)[0].abs().sum() > 0
    found.loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_a_patch_size_that_is_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match="got 12"):
        GridFeatures(16, 12)


def test_a_saved_model_gives_equal_outputs_when_loaded(model_processor_batch, tmp_path: Path):
    model, processor, batch = model_processor_batch
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = ZOO["visual-bert"].model_class.from_pretrained(tmp_path)
    torch.testing.assert_close(again.fill_mask(**batch), model.fill_mask(**batch))
    torch.testing.assert_close(again.match_score(**batch), model.match_score(**batch))
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.mask_token_id == model.config.mask_token_id
    stock = VisualBertForPreTraining.from_pretrained(tmp_path).eval()  # the stock class takes region features as input
    output = stock(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        visual_embeds=model.regions(batch["pixel_values"]),
        visual_attention_mask=torch.ones(3, 16),
    )
    torch.testing.assert_close(output.prediction_logits[:, :-16], model.fill_mask(**batch))


def test_weights_of_the_stock_class_load(tmp_path: Path):
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    stock = VisualBertForPreTraining(VisualBertConfig(vocab_size=200, visual_embedding_dim=64, **sizes)).eval()
    stock.save_pretrained(tmp_path)
    model = VisualBert.from_pretrained(tmp_path)
    ids, regions = torch.randint(104, 200, (2, 5)), torch.randn(2, 4, 64)
    expected = stock(
        ids, torch.ones_like(ids), visual_embeds=regions, visual_attention_mask=torch.ones(2, 4)
    ).prediction_logits
    torch.testing.assert_close(model.cls.predictions(model.encode_pair(regions, ids)[0]), expected[:, :5])
    assert (
        model.regions(torch.randn(2, 3, 224, 224)).isfinite().all()
    )  # newly initialized: the stock class has no region features
