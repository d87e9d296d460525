"""BERT: words that are hidden, found from the words on both sides of them.

`BertForMaskedLM` of transformers, so that public weights load. BERT's second task, whether one sentence follows
another, is left out: a caption is one sentence, and Liu et al. 2019 found nothing lost without it.
Source: Devlin et al. 2019, section 3.1.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from models.masked.grid_features import vocabulary
from models.masked.token_masking import mask_words
from models.outputs import PretrainingOutput


@strict
class MaskedBertConfig(BertConfig):
    """BERT's, and which tokens are no words; the defaults are those of bert-base-uncased."""

    mask_token_id: int = 103
    special_token_ids: tuple[int, ...] | list[int] = (0, 100, 101, 102, 103)
    word_share: float | tuple[float, ...] | list[float] = 0.15


class MaskedBert(BertForMaskedLM):
    """`BertForMaskedLM` that hides words itself."""

    config: MaskedBertConfig
    config_class = MaskedBertConfig

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> PretrainingOutput:  # type: ignore[override]
        """−(1/|M|) Σ_{i∈M} log p(x_i | x̃), over the hidden words M; input_ids, attention_mask: (N, L)."""
        masked, labels = mask_words(
            input_ids,
            attention_mask,
            mask_token_id=self.config.mask_token_id,
            vocab_size=self.config.vocab_size,
            special_ids=tuple(self.config.special_token_ids),
            share=self.config.word_share,
        )
        loss = F.cross_entropy(self.fill(masked, attention_mask).flatten(0, 1), labels.flatten())
        return PretrainingOutput(loss, {"words": loss})

    def fill(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        """Logits (N, L, V) for every place; input_ids, attention_mask: (N, L)."""
        return super().forward(input_ids=input_ids, attention_mask=attention_mask).logits  # type: ignore[union-attr]


def build(
    texts: Iterable[str],
    *,
    width: int = 768,
    layers: int = 12,
    head_width: int = 64,
    mlp_ratio: int = 4,
    text_length: int = 512,
    word_share: float | Sequence[float] = 0.15,
    dropout: float = 0.1,
    initializer_range: float = 0.02,
    vocab_size: int = 0,
) -> tuple[MaskedBert, PreTrainedTokenizerFast]:
    """A new BERT and its tokenizer, with a vocabulary made from `texts`.

    Args:
        word_share: of the words that are hidden, or from which to which, drawn for each caption.
        initializer_range: deviation of the weights at the start; near 1/√width where there is little time to learn.
        vocab_size: rows of the embedding table, where the vocabulary needs fewer.
    """
    tokenizer: Any = vocabulary(texts)
    config = MaskedBertConfig(
        vocab_size=max(len(tokenizer), vocab_size),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // head_width,
        intermediate_size=mlp_ratio * width,
        max_position_embeddings=text_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=initializer_range,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        special_token_ids=sorted(tokenizer.all_special_ids),
        word_share=word_share if isinstance(word_share, float | int) else list(word_share),
    )
    return MaskedBert(config), tokenizer
