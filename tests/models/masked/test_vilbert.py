from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel

from models.masked.grid_features import grid_boxes
from models.masked.random_codebook import RandomCodebook, patchify
from models.masked.token_masking import IGNORE_INDEX, mask_tokens, shift_captions
from models.masked.vilbert import Vilbert, build, region_loss
from models.zoo import ZOO

TEXTS = ["a red circle left of a blue star", "two green crosses", "a blue circle"] * 3
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "region_dim": 24,
    "vision_hidden_size": 32,
    "vision_layers": 2,
    "vision_heads": 2,
    "vision_intermediate_size": 40,
    "text_hidden_size": 48,
    "text_layers": 3,
    "head_dim": 16,
    "co_attention_layers": 2,
    "co_attention_hidden_size": 20,
    "co_attention_heads": 2,
    "codebook_size": 16,
    "text_length": 16,
    "initializer_range": 0.15,
    "dropout": 0.0,
}


@pytest.fixture
def model_processor_batch() -> tuple[Vilbert, object, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model, processor = build(TEXTS, **SIZES)
    batch = processor.tokenizer(TEXTS[:3], padding=True, return_tensors="pt", return_token_type_ids=False)
    return model.eval(), processor, {**batch, "pixel_values": torch.randn(3, 3, 32, 32)}


def test_with_zeroed_co_attention_outputs_words_do_not_depend_on_the_image(model_processor_batch):
    model, _, batch = model_processor_batch
    other = {**batch, "pixel_values": torch.randn(3, 3, 32, 32)}
    assert not torch.allclose(model.fill_mask(**batch), model.fill_mask(**other), atol=1e-3)
    with torch.no_grad():
        for layer in model.co_attention_layers:
            layer.to_regions.output.dense.weight.zero_()
    assert torch.equal(model.fill_mask(**batch), model.fill_mask(**other))
    given = {"pixel_values": batch["pixel_values"], "attention_mask": batch["attention_mask"]}
    one, two = (model.streams(input_ids=ids, **given)[1] for ids in (batch["input_ids"], batch["input_ids"].flip(1)))
    assert not torch.allclose(one, two, atol=1e-3)  # regions still attend to words


def test_co_attention_takes_queries_of_one_stream_and_keys_and_values_of_the_other(model_processor_batch):
    model, _, _ = model_processor_batch
    side = model.co_attention_layers[0].to_regions
    words, regions = torch.randn(1, 4, 48), torch.randn(1, 5, 32)
    q, k, v = side.query(words)[0], side.key(regions)[0], side.value(regions)[0]
    found = torch.zeros(4, 20)
    for head in (slice(0, 10), slice(10, 20)):
        for i in range(4):
            scores = torch.stack([q[i, head] @ k[j, head] / 10**0.5 for j in range(5)])
            found[i, head] = sum(w * v[j, head] for j, w in enumerate(scores.exp() / scores.exp().sum()))
    x = F.layer_norm(words[0] + side.output.dense(found), (48,), eps=1e-12)
    inner = side.feed_forward.dense(F.gelu(side.intermediate.dense(x)))
    expected = F.layer_norm(x + inner, (48,), eps=1e-12)
    torch.testing.assert_close(side(words, regions)[0][0], expected)


def test_co_attention_weights_sum_to_one_and_regions_do_not_attend_to_padding(model_processor_batch):
    model, _, batch = model_processor_batch
    of_words, of_regions = model.co_attention(**batch)
    length = batch["input_ids"].shape[1]
    assert of_words.shape == (3, 2, 2, length, 17)
    assert of_regions.shape == (3, 2, 2, 17, length)
    torch.testing.assert_close(of_words.sum(-1), torch.ones(3, 2, 2, length))
    torch.testing.assert_close(of_regions.sum(-1), torch.ones(3, 2, 2, 17))
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (of_regions.permute(0, 4, 1, 2, 3)[padding] == 0).all()


def test_attention_maps_are_those_of_the_last_co_attention_layer_without_the_global_region(model_processor_batch):
    model, _, batch = model_processor_batch
    maps, weights = model.attention_maps(**batch), model.co_attention(**batch)[0][:, -1]  # (N, heads, L, 1 + R)
    assert maps.shape == (3, batch["input_ids"].shape[1], 4, 4)
    for y in range(4):
        for x in range(4):
            torch.testing.assert_close(
                maps[..., y, x], (weights[:, 0, :, 1 + 4 * y + x] + weights[:, 1, :, 1 + 4 * y + x]) / 2
            )
    torch.testing.assert_close(maps.sum((2, 3)) + weights[..., 0].mean(1), torch.ones(maps.shape[:2]))


def test_padding_does_not_change_the_outputs(model_processor_batch):
    model, processor, batch = model_processor_batch
    alone = processor.tokenizer(TEXTS[1], return_tensors="pt", return_token_type_ids=False)
    length = alone["input_ids"].shape[1]
    assert length < batch["input_ids"].shape[1]
    one = batch["pixel_values"][1:2]
    torch.testing.assert_close(model.fill_mask(pixel_values=one, **alone)[0], model.fill_mask(**batch)[1, :length])
    torch.testing.assert_close(model.match_score(one, **alone), model.match_score(**batch)[1:2])


def test_grid_boxes_are_ordered_row_by_row_from_the_upper_left():
    assert grid_boxes(1).tolist() == [[0, 0, 1, 1, 1]]
    assert grid_boxes(2)[1].tolist() == [0.5, 0, 1, 0.5, 0.25]
    boxes = grid_boxes(4)
    torch.testing.assert_close((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), boxes[:, 4])
    assert float(boxes[:, 4].sum()) == 1


def test_the_global_region_comes_first_and_is_the_mean_of_the_features(model_processor_batch):
    model, _, batch = model_processor_batch
    whole = model.regions
    zeroed = torch.zeros(3, 16, dtype=torch.bool)
    torch.testing.assert_close(whole(batch["pixel_values"], zeroed), whole(batch["pixel_values"]))
    features = whole.features(batch["pixel_values"])
    first = F.layer_norm(
        whole.feature_proj(features.mean(1)) + whole.box_proj(torch.tensor([0.0, 0, 1, 1, 1])), (32,), eps=1e-12
    )
    torch.testing.assert_close(whole(batch["pixel_values"])[:, 0], first)


def test_the_pixels_of_a_zeroed_region_have_no_effect(model_processor_batch):
    model, _, batch = model_processor_batch
    zeroed = torch.zeros(3, 16, dtype=torch.bool)
    zeroed[:, 5] = True  # rows and columns 8 to 16
    changed = batch["pixel_values"].clone()
    changed[:, :, 8:16, 8:16] = 7.0
    torch.testing.assert_close(model.regions(changed, zeroed), model.regions(batch["pixel_values"], zeroed))
    assert not torch.allclose(model.regions(changed)[:, 1:], model.regions(batch["pixel_values"])[:, 1:])


def test_the_region_loss_is_a_kl_divergence():
    torch.manual_seed(0)
    target = torch.randn(4, 6).softmax(-1)
    assert float(region_loss(target.log() + 3.0, target)) == pytest.approx(0, abs=1e-6)
    logits = torch.randn(4, 6)
    slow = [
        sum(float(p) * float((p / q).log()) for p, q in zip(row, guess, strict=True))
        for row, guess in zip(target, logits.softmax(-1), strict=True)
    ]
    assert float(region_loss(logits, target)) == pytest.approx(sum(slow) / 4)
    assert min(slow) > 0
    assert float(region_loss(logits[:0], target[:0])) == 0


def test_nine_of_ten_masked_regions_are_zeroed(model_processor_batch):
    model, *_ = model_processor_batch
    torch.manual_seed(0)
    masked, zeroed = model.hide_regions(1000, 100)
    assert not (zeroed & ~masked).any()
    assert float(masked.float().mean()) == pytest.approx(0.15, abs=0.01)
    assert float(zeroed.sum() / masked.sum()) == pytest.approx(0.9, abs=0.01)


def test_each_part_of_the_loss_equals_a_sum_over_rows(model_processor_batch):
    """Words and regions count for true pairs only; matching separates true from mismatched pairs."""
    model, _, batch = model_processor_batch
    torch.manual_seed(5)
    found = model(**batch)
    torch.manual_seed(5)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    other, other_mask, _ = shift_captions(ids, mask)
    options = {"mask_token_id": model.config.mask_token_id, "special_ids": tuple(model.config.special_token_ids)}
    masks = torch.cat([mask, other_mask])
    masked_ids, labels = mask_tokens(torch.cat([ids, other]), masks, vocab_size=model.config.vocab_size, **options)
    region_mask, zeroed = model.hide_regions(6, 16)
    patches, words, regions, match = patchify(batch["pixel_values"], 8), [], [], []
    for row in range(6):
        one, pixels = slice(row, row + 1), batch["pixel_values"][row % 3 : row % 3 + 1]
        text, image, _ = model.streams(pixels, masked_ids[one], masks[one], zeroed[one])
        probability = torch.sigmoid(model.match_logit(text, image)).item()
        match.append(-torch.tensor(probability if row < 3 else 1 - probability).log())
        if row < 3:
            logs = model.word_predictor(text).log_softmax(-1)[0]
            words += [-logs[i, label] for i, label in enumerate(labels[row].tolist()) if label != IGNORE_INDEX]
            guess = model.region_predictor(image[:, 1:]).log_softmax(-1)[0]
            true = model.codebook(patches[row])
            regions += [(true[i] * (true[i].log() - guess[i])).sum() for i in range(16) if region_mask[row, i]]
    for name, parts in (("mlm", words), ("regions", regions), ("itm", match)):
        assert parts
        torch.testing.assert_close(found.parts[name], sum(parts) / len(parts), msg=name)
    torch.testing.assert_close(found.loss, sum(found.parts.values()))


def test_every_weight_gets_a_gradient_and_both_masked_losses_depend_on_both_modalities(model_processor_batch):
    model, _, batch = model_processor_batch
    torch.manual_seed(0)
    pixels = batch["pixel_values"].requires_grad_()
    found = model(**batch)
    table = model.text.embeddings.position_embeddings.weight
    assert torch.autograd.grad(found.parts["mlm"], pixels, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(found.parts["regions"], table, retain_graph=True)[0].abs().sum() > 0
    found.loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_more_co_attention_layers_than_layers_of_a_stream_are_refused():
    with pytest.raises(ValueError, match="co_attention_layers 3"):
        build(TEXTS, **{**SIZES, "co_attention_layers": 3})


def test_the_text_stream_loads_public_weights(model_processor_batch, tmp_path: Path):
    """Without the contribution of co-attention, the text stream equals BERT."""
    model, _, batch = model_processor_batch
    sizes: Any = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}
    config = BertConfig(vocab_size=model.config.vocab_size, max_position_embeddings=16, **sizes)
    stock = BertModel(config, add_pooling_layer=False).eval()
    stock.save_pretrained(tmp_path)
    model.text = BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    with torch.no_grad():
        for layer in model.co_attention_layers:
            for dense in (layer.to_regions.output.dense, layer.to_regions.feed_forward.dense):
                dense.weight.zero_()
                dense.bias.zero_()
    words = model.streams(**batch)[0]
    torch.testing.assert_close(
        words, stock(batch["input_ids"], batch["attention_mask"]).last_hidden_state, atol=1e-4, rtol=1e-4
    )


def test_a_saved_model_gives_equal_outputs_when_loaded(model_processor_batch, tmp_path: Path):
    model, processor, batch = model_processor_batch
    with torch.no_grad():
        model.codebook.codewords += 1.0  # the saved codewords are used, not newly drawn ones
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for again in (ZOO["vilbert"].model_class.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(again) is Vilbert
        torch.testing.assert_close(again.fill_mask(**batch), model.fill_mask(**batch))
        torch.testing.assert_close(again.match_score(**batch), model.match_score(**batch))
        assert torch.equal(again.codebook.codewords, model.codebook.codewords)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.mask_token_id == model.config.mask_token_id


def test_weights_without_a_codebook_load(model_processor_batch, tmp_path: Path):
    model, *_ = model_processor_batch
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "codebook" not in k})
    again = Vilbert.from_pretrained(tmp_path)
    assert torch.equal(again.codebook.codewords, RandomCodebook(8, 16).codewords)
