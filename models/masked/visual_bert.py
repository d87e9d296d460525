"""VisualBERT: one BERT over the words and the regions of a picture together.

`VisualBertForPreTraining` of transformers, so that public weights load; the regions come from a grid of convolutions
instead of a detector. Source: Li et al. 2019, section 3.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import CLIPProcessor, VisualBertConfig, VisualBertForPreTraining

from models.masked.grid_features import GridFeatures, pair_processor
from models.masked.token_masking import IGNORED, mask_words, swap_captions
from models.outputs import PretrainingOutput

MATCHES, DIFFERS = 0, 1  # the classes of the sentence–image head, as transformers counts them


@strict
class GridVisualBertConfig(VisualBertConfig):
    """VisualBERT's, the grid's sizes, and which tokens are no words, by default those of bert-base-uncased."""

    image_size: int = 224
    patch_size: int = 32
    mask_token_id: int = 103
    special_token_ids: tuple[int, ...] | list[int] = (0, 100, 101, 102, 103)
    word_share: float | tuple[float, ...] | list[float] = 0.15
    swaps: int = 1


class Regions(nn.Module):
    """A picture as `visual_embeds`: what is in each cell of the grid, and which cell it is."""

    def __init__(self, config: GridVisualBertConfig):
        super().__init__()
        width = config.visual_embedding_dim
        self.features = GridFeatures(width, config.patch_size)
        # VisualBERT itself gives all regions one position: a detector's features tell where they are.
        self.places = nn.Embedding((config.image_size // config.patch_size) ** 2, width)
        self.place_norm = nn.LayerNorm(width)  # what and where weigh the same

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns (N, R, d_v)."""
        return self.features(pixel_values) + self.place_norm(self.places.weight)


class VisualBert(VisualBertForPreTraining):
    """`VisualBertForPreTraining` that makes its regions, hides words and swaps captions itself."""

    config: GridVisualBertConfig
    config_class = GridVisualBertConfig

    def __init__(self, config: GridVisualBertConfig):
        super().__init__(config)
        self.regions = Regions(config)
        self.post_init()

    def read(
        self, visual_embeds: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """visual_embeds: (N, R, d_v); input_ids, attention_mask: (N, L); returns words (N, L, D) and fit (N, 2)."""
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = self.visual_bert(input_ids=input_ids, attention_mask=attention_mask, visual_embeds=visual_embeds)
        words = seen.last_hidden_state[:, : input_ids.shape[1]]  # the regions have no words to find
        return words, self.cls.seq_relationship(seen.pooler_output)

    def forward(  # type: ignore[override]
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> PretrainingOutput:
        """Hidden words + whether text and picture match, unweighted.

        Each picture is seen with its own caption and with `swaps` others of the batch (one in the paper: half of the
        texts). All of them have words hidden, but only a picture's own are asked for: another's say nothing of it.

        pixel_values: (N, 3, H, W), normalised; input_ids, attention_mask: (N, L), row i the caption of picture i.
        """
        texts = [(input_ids, attention_mask, torch.ones_like(input_ids[:, 0], dtype=torch.bool))]
        texts += [swap_captions(input_ids, attention_mask) for _ in range(self.config.swaps)]
        ids, mask, matches = (torch.cat(parts) for parts in zip(*texts, strict=True))  # (1 + swaps)·N rows
        masked, labels = mask_words(
            ids,
            mask,
            mask_token_id=self.config.mask_token_id,
            vocab_size=self.config.vocab_size,
            special_ids=tuple(self.config.special_token_ids),
            share=self.config.word_share,
        )
        regions = self.regions(pixel_values).repeat(len(texts), 1, 1)
        words, fits = self.read(regions, masked, mask)
        asked = (labels != IGNORED) & matches[:, None]
        hidden = F.cross_entropy(self.cls.predictions(words[asked]), labels[asked])
        # Own and swapped captions weigh the same, however many are swapped.
        each = F.cross_entropy(fits, torch.where(matches, MATCHES, DIFFERS), reduction="none")
        own, other = each[matches].mean(), each[~matches].sum() / (~matches).sum().clamp(min=1)
        parts = {"words": hidden, "match": (own + other) / 2}
        return PretrainingOutput(hidden + parts["match"], parts)

    def match(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log odds (N,) that text i tells of picture i; pixel_values: (N, 3, H, W); input_ids: (N, L)."""
        _, fits = self.read(self.regions(pixel_values), input_ids, attention_mask)
        return fits[:, MATCHES] - fits[:, DIFFERS]

    def fill(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        """Logits (N, L, V) for every place of the text; input_ids, attention_mask: (N, L)."""
        return self.cls.predictions(self.read(self.regions(pixel_values), input_ids, attention_mask)[0])

    def attention_maps(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Where each word looks in the last layer, a mean over heads: (N, L, side, side).

        The rest, up to 1, goes to words. Source: Li et al. 2019, figure 1, where heads are chosen.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "visual_embeds": self.regions(pixel_values)}
        seen = self.visual_bert(**given, output_attentions=True).attentions[-1].mean(1)  # (N, L + R, L + R)
        maps = seen[:, : input_ids.shape[1], input_ids.shape[1] :]  # (N, L, R)
        return maps.unflatten(2, (round(maps.shape[2] ** 0.5), -1))


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 32,
    region_width: int = 2048,
    width: int = 768,
    layers: int = 12,
    head_width: int = 64,
    mlp_ratio: int = 4,
    text_length: int = 512,
    word_share: float | Sequence[float] = 0.15,
    swaps: int = 1,
    dropout: float = 0.1,
    initializer_range: float = 0.02,
    vocab_size: int = 0,
) -> tuple[VisualBert, CLIPProcessor]:
    """A new VisualBERT and its processor, with a vocabulary made from `texts`.

    Args:
        region_width: d_v, of a region's features.
        word_share: of the words that are hidden, or from which to which, drawn for each caption.
        swaps: captions of other pictures that each picture is seen with.
        initializer_range: deviation of the weights at the start; near 1/√width where there is little time to learn.
        vocab_size: rows of the embedding table, where the vocabulary needs fewer.
    """
    processor = pair_processor(texts, image_size)
    tokenizer: Any = processor.tokenizer  # type: ignore[attr-defined]
    config = GridVisualBertConfig(
        image_size=image_size,
        patch_size=patch_size,
        visual_embedding_dim=region_width,
        vocab_size=max(len(tokenizer), vocab_size),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // head_width,
        intermediate_size=mlp_ratio * width,
        max_position_embeddings=text_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=initializer_range,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        special_token_ids=sorted(tokenizer.all_special_ids),
        word_share=word_share if isinstance(word_share, float | int) else list(word_share),
        swaps=swaps,
    )
    return VisualBert(config), processor
