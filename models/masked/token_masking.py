"""Hidden words: which ones a masked model has to find, and what it sees in their place.

Source: Devlin et al. 2019, section 3.1, task 1.
"""

from collections.abc import Sequence

import torch

IGNORED = -100  # a label that no loss counts


def mask_words(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    mask_token_id: int,
    vocab_size: int,
    special_ids: tuple[int, ...],
    share: float | Sequence[float] = 0.15,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hide `share` of the words: of those, 80% become the mask token, 10% a random token, and 10% stay.

    Each word is drawn by itself. Captions are short: at 15% a caption of six words would go unused every third time,
    so a row of which no word is drawn gives one, each word as likely as another.

    Args:
        input_ids, attention_mask: (N, L).
        vocab_size: how many tokens a random one is drawn from; never one of `special_ids`.
        special_ids: tokens that are never hidden; a row of nothing else stays as it is.
        share: of the words, or from which to which it is drawn for each row, as Ghazvininejad et al. 2019 do: a row of
            few words has little but the picture to tell it the others, and one of nearly all says what it should show.

    Returns:
        What the model sees, (N, L), and labels, (N, L), −100 where no word is hidden.
    """
    special = torch.tensor(special_ids, device=input_ids.device)
    words = attention_mask.bool() & ~torch.isin(input_ids, special)
    draw = torch.rand(input_ids.shape, device=input_ids.device).masked_fill(~words, 2.0)
    low, high = (share, share) if isinstance(share, float | int) else share
    hidden = draw < low + (high - low) * torch.rand(len(draw), 1, device=draw.device)
    lowest = draw == draw.min(1, keepdim=True).values
    hidden = words & (hidden | (lowest & ~hidden.any(1, keepdim=True)))
    labels = input_ids.masked_fill(~hidden, IGNORED)
    fate = torch.rand(input_ids.shape, device=input_ids.device)
    ordinary = torch.ones(vocab_size, device=input_ids.device).index_fill_(0, special[special < vocab_size], 0.0)
    other = torch.multinomial(ordinary, input_ids.numel(), replacement=True).view_as(input_ids)
    masked = torch.where(hidden & (fate < 0.8), mask_token_id, input_ids)
    return torch.where(hidden & (fate >= 0.8) & (fate < 0.9), other, masked), labels


def swap_captions(
    input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every row with the caption of another row of the batch, and (N,) bool where that reads the same as its own.

    input_ids, attention_mask: (N, L). All rows move on by one number of places, drawn from 1 to N − 1, so that no row
    keeps its own; but two pictures may be told by the same words, and those are no mistake.
    """
    count = len(input_ids)
    places = int(torch.randint(1, max(count, 2), ()))
    ids, mask = input_ids.roll(places, 0), attention_mask.roll(places, 0)
    same = (ids.masked_fill(mask == 0, -1) == input_ids.masked_fill(attention_mask == 0, -1)).all(1)
    return ids, mask, same
