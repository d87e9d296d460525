"""BERT: predict masked tokens from the tokens on both sides.

`BertForMaskedLM` of transformers, so that public weights load. BERT's second task, next-sentence prediction, is left
out: a caption is one sentence, and Liu et al. 2019 found no loss without it.
Source: Devlin et al. 2019, section 3.1.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from models.masked.grid_features import build_bert_tokenizer
from models.masked.token_masking import mask_tokens
from models.outputs import PretrainingOutput


@strict
class MaskedBertConfig(BertConfig):
    """BERT's config with the masking and the ids of special tokens, by default those of bert-base-uncased."""

    mask_token_id: int = 103
    special_token_ids: tuple[int, ...] | list[int] = (0, 100, 101, 102, 103)
    mask_probability: float | tuple[float, ...] | list[float] = 0.15


class MaskedBert(BertForMaskedLM):
    """`BertForMaskedLM` whose forward masks the tokens."""

    config: MaskedBertConfig
    config_class = MaskedBertConfig

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> PretrainingOutput:  # type: ignore[override]
        """Compute −(1/|M|) Σ_{i∈M} log p(x_i | x̃) over the masked tokens M; input_ids, attention_mask: (N, L)."""
        masked, labels = mask_tokens(
            input_ids,
            attention_mask,
            mask_token_id=self.config.mask_token_id,
            vocab_size=self.config.vocab_size,
            special_ids=tuple(self.config.special_token_ids),
            probability=self.config.mask_probability,
        )
        loss = F.cross_entropy(self.fill_mask(masked, attention_mask).flatten(0, 1), labels.flatten())
        return PretrainingOutput(loss, {"mlm": loss})

    def fill_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        """Logits (N, L, V) at every position; input_ids, attention_mask: (N, L)."""
        return super().forward(input_ids=input_ids, attention_mask=attention_mask).logits  # type: ignore[union-attr]


def build(
    texts: Iterable[str],
    *,
    hidden_size: int = 768,
    layers: int = 12,
    head_dim: int = 64,
    mlp_ratio: int = 4,
    text_length: int = 512,
    mask_probability: float | Sequence[float] = 0.15,
    dropout: float = 0.1,
    initializer_range: float = 0.02,
    vocab_size: int = 0,
) -> tuple[MaskedBert, PreTrainedTokenizerFast]:
    """Build a BERT and its tokenizer, with a vocabulary from `texts`.

    Args:
        mask_probability: of a token, or the bounds from which it is drawn for each caption.
        initializer_range: standard deviation of the initial weights; near 1/√hidden_size for a short training.
        vocab_size: minimum number of rows of the embedding table.
    """
    tokenizer: Any = build_bert_tokenizer(texts)
    config = MaskedBertConfig(
        vocab_size=max(len(tokenizer), vocab_size),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // head_dim,
        intermediate_size=mlp_ratio * hidden_size,
        max_position_embeddings=text_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=initializer_range,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        special_token_ids=sorted(tokenizer.all_special_ids),
        mask_probability=mask_probability if isinstance(mask_probability, float | int) else list(mask_probability),
    )
    return MaskedBert(config), tokenizer
