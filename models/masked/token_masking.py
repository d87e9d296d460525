"""Token masking for masked language models, and mismatched captions for image-text matching.

Source: Devlin et al. 2019, section 3.1, task 1.
"""

from collections.abc import Sequence

import torch

IGNORE_INDEX = -100  # a label that losses skip


def mask_tokens(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    mask_token_id: int,
    vocab_size: int,
    special_ids: tuple[int, ...],
    probability: float | Sequence[float] = 0.15,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Select tokens with `probability`; 80% of them become the mask token, 10% a random token, and 10% are kept.

    Tokens are selected independently. Captions are short: at 15% every third caption of six words would have no
    selected token, so such a row gets one, drawn uniformly.

    Args:
        input_ids, attention_mask: (N, L).
        vocab_size: random tokens are drawn from this range, without `special_ids`.
        special_ids: tokens that are never selected; a row without other tokens is left as it is.
        probability: of a token, or the bounds of a range from which each row's probability is drawn, as in
            Ghazvininejad et al. 2019. A row with few tokens left depends on the image; a row with most of them left
            depends on its context.

    Returns:
        The masked ids, (N, L), and labels, (N, L), −100 where no token is selected.
    """
    special = torch.tensor(special_ids, device=input_ids.device)
    words = attention_mask.bool() & ~torch.isin(input_ids, special)
    draw = torch.rand(input_ids.shape, device=input_ids.device).masked_fill(~words, 2.0)
    low, high = (probability, probability) if isinstance(probability, float | int) else probability
    selected = draw < low + (high - low) * torch.rand(len(draw), 1, device=draw.device)
    lowest = draw == draw.min(1, keepdim=True).values
    selected = words & (selected | (lowest & ~selected.any(1, keepdim=True)))
    labels = input_ids.masked_fill(~selected, IGNORE_INDEX)
    action = torch.rand(input_ids.shape, device=input_ids.device)
    ordinary = torch.ones(vocab_size, device=input_ids.device).index_fill_(0, special[special < vocab_size], 0.0)
    other = torch.multinomial(ordinary, input_ids.numel(), replacement=True).view_as(input_ids)
    masked = torch.where(selected & (action < 0.8), mask_token_id, input_ids)
    return torch.where(selected & (action >= 0.8) & (action < 0.9), other, masked), labels


def shift_captions(
    input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give every row the caption of another row of the batch, as negatives for matching.

    All captions are rolled by the same offset, drawn from 1 to N − 1.

    Args:
        input_ids, attention_mask: (N, L).

    Returns:
        The other rows' ids and attention masks, (N, L) each, and (N,) bool, True where the caption equals the row's own
        and is therefore not a negative.
    """
    count = len(input_ids)
    offset = int(torch.randint(1, max(count, 2), ()))
    ids, mask = input_ids.roll(offset, 0), attention_mask.roll(offset, 0)
    same = (ids.masked_fill(mask == 0, -1) == input_ids.masked_fill(attention_mask == 0, -1)).all(1)
    return ids, mask, same
