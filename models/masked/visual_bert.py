"""VisualBERT: one BERT over the tokens of a caption and the regions of an image.

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

from models.masked.grid_features import GridFeatures, build_pair_processor
from models.masked.token_masking import IGNORE_INDEX, mask_tokens, shift_captions
from models.outputs import PretrainingOutput

MATCH, MISMATCH = 0, 1  # the classes of the sentence–image head, as in transformers


@strict
class GridVisualBertConfig(VisualBertConfig):
    """VisualBERT's config with the grid, the masking and the ids of special tokens (of bert-base-uncased)."""

    image_size: int = 224
    patch_size: int = 32
    mask_token_id: int = 103
    special_token_ids: tuple[int, ...] | list[int] = (0, 100, 101, 102, 103)
    mask_probability: float | tuple[float, ...] | list[float] = 0.15
    num_negatives: int = 1


class RegionEmbeddings(nn.Module):
    """`visual_embeds` of an image: the features of each cell of the grid plus an embedding of the cell's position."""

    def __init__(self, config: GridVisualBertConfig):
        super().__init__()
        width = config.visual_embedding_dim
        self.features = GridFeatures(width, config.patch_size)
        # VisualBERT itself gives all regions the same position, because a detector's features contain it.
        self.location = nn.Embedding((config.image_size // config.patch_size) ** 2, width)
        self.location_norm = nn.LayerNorm(width)  # gives features and positions the same scale

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns (N, R, d_v)."""
        return self.features(pixel_values) + self.location_norm(self.location.weight)


class VisualBert(VisualBertForPreTraining):
    """`VisualBertForPreTraining` that embeds the regions, masks the tokens and draws the negative captions."""

    config: GridVisualBertConfig
    config_class = GridVisualBertConfig

    def __init__(self, config: GridVisualBertConfig):
        super().__init__(config)
        self.regions = RegionEmbeddings(config)
        self.post_init()

    def encode_pair(
        self, visual_embeds: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode images with captions.

        Args:
            visual_embeds: (N, R, d_v).
            input_ids, attention_mask: (N, L).

        Returns:
            The states of the text, (N, L, D), and the logits of match and mismatch, (N, 2).
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        outputs = self.visual_bert(input_ids=input_ids, attention_mask=attention_mask, visual_embeds=visual_embeds)
        text = outputs.last_hidden_state[:, : input_ids.shape[1]]
        return text, self.cls.seq_relationship(outputs.pooler_output)

    def forward(  # type: ignore[override]
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> PretrainingOutput:
        """Compute masked language modelling + image-text matching, unweighted.

        Each image is paired with its own caption and with `num_negatives` others of the batch (one in the paper:
        half of the texts). All captions are masked, but only the own captions count for the first loss, because the
        image does not help to predict the others.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            input_ids, attention_mask: (N, L), row i the caption of image i.
        """
        captions = [(input_ids, attention_mask, torch.ones_like(input_ids[:, 0], dtype=torch.bool))]
        captions += [shift_captions(input_ids, attention_mask) for _ in range(self.config.num_negatives)]
        ids, mask, is_match = (torch.cat(parts) for parts in zip(*captions, strict=True))  # (1 + num_negatives)·N rows
        masked, labels = mask_tokens(
            ids,
            mask,
            mask_token_id=self.config.mask_token_id,
            vocab_size=self.config.vocab_size,
            special_ids=tuple(self.config.special_token_ids),
            probability=self.config.mask_probability,
        )
        regions = self.regions(pixel_values).repeat(len(captions), 1, 1)
        text, match_logits = self.encode_pair(regions, masked, mask)
        scored = (labels != IGNORE_INDEX) & is_match[:, None]
        mlm = F.cross_entropy(self.cls.predictions(text[scored]), labels[scored])
        # Matches and mismatches have the same total weight, whatever the number of negatives.
        each = F.cross_entropy(match_logits, torch.where(is_match, MATCH, MISMATCH), reduction="none")
        own, other = each[is_match].mean(), each[~is_match].sum() / (~is_match).sum().clamp(min=1)
        parts = {"mlm": mlm, "itm": (own + other) / 2}
        return PretrainingOutput(mlm + parts["itm"], parts)

    def match_score(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log odds (N,) that text i matches image i; pixel_values: (N, 3, H, W); input_ids: (N, L)."""
        _, logits = self.encode_pair(self.regions(pixel_values), input_ids, attention_mask)
        return logits[:, MATCH] - logits[:, MISMATCH]

    def fill_mask(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        """Logits (N, L, V) at every position of the text; input_ids, attention_mask: (N, L)."""
        return self.cls.predictions(self.encode_pair(self.regions(pixel_values), input_ids, attention_mask)[0])

    def attention_maps(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of each token over the regions in the last layer, a mean over heads: (N, L, side, side).

        The rest of the attention, up to 1, falls on tokens. Source: Li et al. 2019, figure 1, which selects heads.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        outputs = self.visual_bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            visual_embeds=self.regions(pixel_values),
            output_attentions=True,
        )
        attention = outputs.attentions[-1].mean(1)  # (N, L + R, L + R)
        maps = attention[:, : input_ids.shape[1], input_ids.shape[1] :]  # (N, L, R)
        return maps.unflatten(2, (round(maps.shape[2] ** 0.5), -1))


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 32,
    region_dim: int = 2048,
    hidden_size: int = 768,
    layers: int = 12,
    head_dim: int = 64,
    mlp_ratio: int = 4,
    text_length: int = 512,
    mask_probability: float | Sequence[float] = 0.15,
    num_negatives: int = 1,
    dropout: float = 0.1,
    initializer_range: float = 0.02,
    vocab_size: int = 0,
) -> tuple[VisualBert, CLIPProcessor]:
    """Build a VisualBERT and its processor, with a vocabulary from `texts`.

    Args:
        region_dim: d_v, size of a region's features.
        mask_probability: probability that a token is masked, or the bounds from which it is drawn for each caption.
        num_negatives: captions of other images with which each image is paired.
        initializer_range: standard deviation of the initial weights; use about 1/√hidden_size for short training.
        vocab_size: minimum number of rows of the embedding table.
    """
    processor = build_pair_processor(texts, image_size)
    tokenizer: Any = processor.tokenizer  # type: ignore[attr-defined]
    config = GridVisualBertConfig(
        image_size=image_size,
        patch_size=patch_size,
        visual_embedding_dim=region_dim,
        vocab_size=max(len(tokenizer), vocab_size),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // head_dim,
        intermediate_size=mlp_ratio * hidden_size,
        max_position_embeddings=text_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=initializer_range,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        special_token_ids=sorted(tokenizer.all_special_ids),
        mask_probability=mask_probability if isinstance(mask_probability, float | int) else list(mask_probability),
        num_negatives=num_negatives,
    )
    return VisualBert(config), processor
