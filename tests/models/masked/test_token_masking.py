from typing import Any

import pytest
import torch
from transformers import DataCollatorForLanguageModeling

from models.masked.grid_features import build_bert_tokenizer
from models.masked.token_masking import IGNORE_INDEX, mask_tokens, shift_captions

OPTIONS = {"mask_token_id": 3, "vocab_size": 50, "special_ids": (0, 1, 2, 3)}


def rates(before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor, mask_token_id: int) -> tuple[float, ...]:
    """Return the share of selected tokens; of these, the shares of mask tokens, other tokens and unchanged tokens."""
    selected = labels != IGNORE_INDEX
    assert torch.equal(labels[selected], before[selected])
    assert torch.equal(after[~selected], before[~selected])
    mask, kept = after[selected] == mask_token_id, after[selected] == before[selected]
    return tuple(float(x.float().mean()) for x in (selected, mask, ~mask & ~kept, kept))


def test_masking_rates_equal_berts_and_those_of_the_stock_collator():
    torch.manual_seed(0)
    tokenizer: Any = build_bert_tokenizer([])
    words = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    ids = torch.tensor(words)[torch.randint(0, len(words), (1000, 100))]
    options = {
        "mask_token_id": tokenizer.mask_token_id,
        "vocab_size": len(tokenizer),
        "special_ids": tuple(tokenizer.all_special_ids),
    }
    ours = rates(ids, *mask_tokens(ids, torch.ones_like(ids), **options), tokenizer.mask_token_id)
    stock = DataCollatorForLanguageModeling(tokenizer)([{"input_ids": row} for row in ids.tolist()])
    theirs = rates(ids, stock["input_ids"], stock["labels"], tokenizer.mask_token_id)
    assert ours == pytest.approx((0.15, 0.8, 0.1, 0.1), abs=0.01)
    assert ours == pytest.approx(theirs, abs=0.01)


def test_special_tokens_and_padding_are_never_selected_and_never_inserted():
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (500, 12))
    mask = (torch.arange(12) < torch.randint(1, 13, (500, 1))).long()
    after, labels = mask_tokens(ids, mask, probability=0.5, **OPTIONS)
    assert not (labels[(ids < 4) | (mask == 0)] != IGNORE_INDEX).any()
    changed = after != ids
    assert set(after[changed].tolist()) & {0, 1, 2, 3} == {3}


def test_every_row_has_a_selected_token_drawn_uniformly():
    torch.manual_seed(0)
    ids = torch.tensor([[1, 10, 11, 12, 2, 0]]).repeat(6000, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]]).repeat(6000, 1)
    _, labels = mask_tokens(ids, mask, probability=1e-9, **OPTIONS)
    selected = labels != IGNORE_INDEX
    assert (selected.sum(1) == 1).all()
    assert selected.float().mean(0).tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0, 0], abs=0.03)


def test_a_range_of_probabilities_is_drawn_uniformly_for_each_row():
    torch.manual_seed(0)
    ids = torch.full((1000, 400), 10)
    _, labels = mask_tokens(ids, torch.ones_like(ids), probability=(0.2, 0.8), **OPTIONS)
    shares = (labels != IGNORE_INDEX).float().mean(1)
    cumulative = [float((shares < edge).float().mean()) for edge in (0.1, 0.35, 0.5, 0.65, 0.9)]
    assert cumulative == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.05)


def test_a_row_without_words_is_unchanged():
    ids = torch.tensor([[1, 2, 0]])
    after, labels = mask_tokens(ids, torch.tensor([[1, 1, 0]]), **OPTIONS)
    assert torch.equal(after, ids)
    assert (labels == IGNORE_INDEX).all()


def test_no_row_keeps_its_own_caption_and_attention_masks_move_with_captions():
    torch.manual_seed(0)
    ids = torch.arange(5)[:, None] + torch.tensor([[10, 20, 30]])
    mask = (torch.arange(3) <= torch.tensor([[0], [1], [2], [1], [0]])).long()
    offsets = set()
    for _ in range(50):
        other, other_mask, same = shift_captions(ids, mask)
        rows = (other[:, 0] - 10).tolist()
        offsets.add(rows[0])
        assert all(row != i for i, row in enumerate(rows))
        assert sorted(rows) == [0, 1, 2, 3, 4]
        assert torch.equal(other_mask, mask[rows])
        assert not same.any()
    assert offsets == {1, 2, 3, 4}


def test_an_equal_caption_of_another_image_is_no_negative():
    ids = torch.tensor([[5, 6, 0], [5, 6, 9], [5, 6, 7]])  # ids under padding are ignored
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]])
    torch.manual_seed(0)
    for _ in range(10):
        _, other_mask, same = shift_captions(ids, mask)
        lengths = list(zip(mask.sum(1).tolist(), other_mask.sum(1).tolist(), strict=True))
        assert same.tolist() == [own == new == 2 for own, new in lengths]


def test_a_batch_of_one_has_no_other_caption():
    *_, same = shift_captions(torch.tensor([[5, 6]]), torch.tensor([[1, 1]]))
    assert same.tolist() == [True]
