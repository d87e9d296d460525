from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoProcessor, BertConfig, BertForMaskedLM

from models.masked.bert import MaskedBert, build
from models.masked.token_masking import IGNORE_INDEX, mask_tokens
from models.zoo import ZOO

TEXTS = ["a red circle left of a blue star", "two green crosses", "a blue circle"] * 3
SIZES = {"hidden_size": 32, "layers": 2, "head_dim": 16, "text_length": 16}


@pytest.fixture
def bert():
    torch.manual_seed(0)
    model, tokenizer = build(TEXTS, **SIZES)
    batch = tokenizer(TEXTS[:3], padding=True, return_tensors="pt", return_token_type_ids=False)
    return model.eval(), tokenizer, batch


def test_the_loss_is_the_mean_negative_log_probability_of_masked_words(bert):
    model, tokenizer, batch = bert
    torch.manual_seed(1)
    loss = model(**batch).loss
    torch.manual_seed(1)
    options = {"mask_token_id": tokenizer.mask_token_id, "special_ids": tuple(tokenizer.all_special_ids)}
    masked, labels = mask_tokens(batch["input_ids"], batch["attention_mask"], vocab_size=len(tokenizer), **options)
    probabilities = model.fill_mask(masked, batch["attention_mask"]).softmax(-1)
    logs = [
        probabilities[row, position, labels[row, position]].log()
        for row in range(3)
        for position in range(labels.shape[1])
        if labels[row, position] != IGNORE_INDEX
    ]
    assert len(logs) >= 3
    torch.testing.assert_close(loss, -sum(logs) / len(logs))


def test_tokens_that_are_not_masked_do_not_count(bert, monkeypatch):
    model, _, batch = bert
    torch.manual_seed(1)
    logits = []
    stock: Any = BertForMaskedLM.forward

    def forward(*args, **kwargs):
        found = stock(*args, **kwargs)
        found.logits.retain_grad()
        logits.append(found.logits)
        return found

    monkeypatch.setattr(BertForMaskedLM, "forward", forward)
    model(**batch).loss.backward()
    masked = logits[0].grad.abs().sum(-1) > 0
    words = batch["attention_mask"].bool() & (batch["input_ids"] > 8)
    assert masked.any(1).all()
    assert not (masked & ~words).any()
    assert masked.sum() < words.sum()


def test_predictions_depend_on_both_neighbours_and_not_on_padding(bert):
    model, tokenizer, _ = bert
    ids = tokenizer("a red <mask> left of a blue star", return_tensors="pt")["input_ids"]
    position = ids[0].tolist().index(tokenizer.mask_token_id)
    before = model.fill_mask(ids)[0, position]
    for other in (position - 1, position + 1):
        changed = ids.clone()
        changed[0, other] = tokenizer.convert_tokens_to_ids("▁green")
        assert not torch.allclose(model.fill_mask(changed)[0, position], before)
    padded = torch.cat([ids, torch.tensor([[7, 7]])], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(1, 2, dtype=torch.long)], dim=1)
    torch.testing.assert_close(model.fill_mask(padded, mask)[0, position], before)


def test_every_weight_gets_a_gradient(bert):
    model, _, batch = bert
    model(**batch).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_a_saved_model_loads_with_our_class_and_with_the_stock_class(bert, tmp_path: Path):
    model, tokenizer, batch = bert
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = model.fill_mask(**batch)
    again = ZOO["bert"].model_class.from_pretrained(tmp_path)
    assert again.config.special_token_ids == sorted(tokenizer.all_special_ids)
    torch.testing.assert_close(again.fill_mask(**batch), expected)
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(stock) is BertForMaskedLM
    torch.testing.assert_close(stock(**batch).logits, expected)
    assert AutoConfig.from_pretrained(tmp_path).mask_token_id == tokenizer.mask_token_id
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.mask_token == "<mask>"
    assert loaded("a <mask> circle")["input_ids"] == tokenizer("a <mask> circle")["input_ids"]


def test_weights_of_the_stock_class_load(tmp_path: Path):
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    stock = BertForMaskedLM(BertConfig(vocab_size=200, **sizes)).eval()
    stock.save_pretrained(tmp_path)
    model = MaskedBert.from_pretrained(tmp_path)
    ids = torch.randint(104, 200, (2, 5))
    torch.testing.assert_close(model.fill_mask(ids), stock(ids).logits)
    assert model.config.mask_token_id == 103  # as in bert-base-uncased
    assert model(ids, torch.ones_like(ids)).loss > 0
