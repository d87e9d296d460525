"""ViLBERT: one stream for text, one for image regions, and co-attention between them.

The text stream is transformers' `BertModel`, so that it can start from public weights, as in the paper
(`model.text = BertModel.from_pretrained(…)`). Regions are the cells of a grid instead of a detector's boxes, and their
classes come from a fixed codebook. Source: Lu et al. 2019, sections 2.2 and 3.1.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, CLIPProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.bert.modeling_bert import BertIntermediate, BertLayer, BertOutput, BertSelfOutput

from models.masked.grid_features import GridFeatures, build_pair_processor, grid_boxes
from models.masked.random_codebook import RandomCodebook, patchify
from models.masked.token_masking import IGNORE_INDEX, mask_tokens, shift_captions
from models.outputs import PretrainingOutput


@strict
class VilbertConfig(PreTrainedConfig):
    """Sizes of the streams, by default the paper's; names as in BERT, such as `hidden_size`, are of the text stream."""

    model_type = "vilbert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    image_size: int = 224
    patch_size: int = 32
    region_dim: int = 2048
    vision_hidden_size: int = 1024
    vision_layers: int = 6
    vision_heads: int = 8
    vision_intermediate_size: int = 1024
    co_attention_layers: int = 6
    co_attention_hidden_size: int = 1024
    co_attention_heads: int = 8
    codebook_size: int = 1601
    mask_probability: float | tuple[float, ...] | list[float] = 0.15
    region_mask_probability: float = 0.15
    dropout: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int = 0
    mask_token_id: int = 103
    special_token_ids: tuple[int, ...] | list[int] = (0, 100, 101, 102, 103)

    def stream(self, **sizes: Any) -> BertConfig:
        """Return the config of a stream: the values that both streams share, and `sizes`."""
        return BertConfig(
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            initializer_range=self.initializer_range,
            **{"attn_implementation": "sdpa", **sizes},
        )

    @property
    def text(self) -> BertConfig:
        """The config of the text stream."""
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        names += ("max_position_embeddings", "pad_token_id")
        return self.stream(**{name: getattr(self, name) for name in names})

    @property
    def vision(self) -> BertConfig:
        """The config of the region stream."""
        return self.stream(
            hidden_size=self.vision_hidden_size,
            num_attention_heads=self.vision_heads,
            intermediate_size=self.vision_intermediate_size,
        )


class CoAttention(nn.Module):
    """One direction of co-attention: queries of one stream, keys and values of the other; then a feed-forward block."""

    def __init__(self, config: VilbertConfig, own: BertConfig, other: BertConfig):
        super().__init__()
        self.heads, self.width = config.co_attention_heads, config.co_attention_hidden_size
        self.query = nn.Linear(own.hidden_size, self.width)
        self.key = nn.Linear(other.hidden_size, self.width)
        self.value = nn.Linear(other.hidden_size, self.width)
        self.dropout = nn.Dropout(config.dropout)
        self.output = BertSelfOutput(own)  # x + dense(…), normalised
        self.output.dense = nn.Linear(self.width, own.hidden_size)
        self.intermediate, self.feed_forward = BertIntermediate(own), BertOutput(own)

    def forward(
        self, x: torch.Tensor, other: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x: (N, L, D); other: (N, K, D'); mask: (N, 1, 1, K) bool; returns (N, L, D) and weights (N, heads, L, K)."""
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, L or K, D/heads)
            for y in (self.query(x), self.key(other), self.value(other))
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        attended = (self.dropout(weights) @ v).transpose(1, 2).flatten(2)  # (N, L, co-attention width)
        x = self.output(attended, x)
        return self.feed_forward(self.intermediate(x), x), weights


class CoAttentionLayer(nn.Module):
    """A co-attentional transformer layer: both streams attend to each other in parallel. Source: figure 2b."""

    def __init__(self, config: VilbertConfig):
        super().__init__()
        self.to_regions = CoAttention(config, config.text, config.vision)
        self.to_words = CoAttention(config, config.vision, config.text)

    def forward(self, words: torch.Tensor, regions: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the new words (N, L, D) and regions (N, R, D'), and the attention weights of words and of regions."""
        new_words, of_words = self.to_regions(words, regions)
        new_regions, of_regions = self.to_words(regions, words, mask)
        return new_words, new_regions, of_words, of_regions


class RegionEmbeddings(nn.Module):
    """Embed regions, with a global one in front: LN(W f + W' (x0, y0, x1, y1, area)). Source: section 3.1."""

    def __init__(self, config: VilbertConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.features = GridFeatures(config.region_dim, config.patch_size)
        self.feature_proj = nn.Linear(config.region_dim, config.vision_hidden_size)
        self.box_proj = nn.Linear(5, config.vision_hidden_size)
        self.norm = nn.LayerNorm(config.vision_hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, pixel_values: torch.Tensor, zeroed: torch.Tensor | None = None) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); zeroed: (N, R) bool, regions to hide; returns (N, 1 + R, D).

        Pixels are zeroed as well as features, because convolutions reach into neighbouring regions. The global region
        is the mean of all features, zeros included, with the box of the whole image.
        """
        side = pixel_values.shape[-1] // self.patch_size
        if zeroed is not None:
            cells = zeroed.view(-1, 1, side, side)
            cells = cells.repeat_interleave(self.patch_size, 2).repeat_interleave(self.patch_size, 3)
            pixel_values = pixel_values.masked_fill(cells, 0.0)
        features = self.features(pixel_values)  # (N, R, region width)
        if zeroed is not None:
            features = features.masked_fill(zeroed[..., None], 0.0)
        features = torch.cat([features.mean(1, keepdim=True), features], dim=1)
        boxes = torch.cat([grid_boxes(1), grid_boxes(side)]).to(features)  # (1 + R, 5)
        return self.dropout(self.norm(self.feature_proj(features) + self.box_proj(boxes)))


class PredictionHead(nn.Module):
    """BERT's prediction head: a hidden layer with norm, and a linear layer to the classes."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.decoder = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., D); returns (..., classes)."""
        return self.decoder(self.norm(F.gelu(self.dense(x))))


class Vilbert(PreTrainedModel):
    """The two streams with their co-attention layers, and the heads of the three pretraining tasks."""

    config: VilbertConfig
    config_class = VilbertConfig
    main_input_name = "pixel_values"
    _tied_weights_keys = {"word_predictor.decoder.weight": "text.embeddings.word_embeddings.weight"}

    def __init__(self, config: VilbertConfig):
        super().__init__(config)
        if config.co_attention_layers > min(config.num_hidden_layers, config.vision_layers):
            raise ValueError(
                f"co_attention_layers {config.co_attention_layers} exceeds the number of layers of a stream: text "
                f"{config.num_hidden_layers}, vision {config.vision_layers}"
            )
        self.text = BertModel(config.text, add_pooling_layer=False)
        self.regions = RegionEmbeddings(config)
        self.vision = nn.ModuleList(BertLayer(config.vision) for _ in range(config.vision_layers))
        self.co_attention_layers = nn.ModuleList(CoAttentionLayer(config) for _ in range(config.co_attention_layers))
        self.text_pooler = nn.Linear(config.hidden_size, config.co_attention_hidden_size)
        self.vision_pooler = nn.Linear(config.vision_hidden_size, config.co_attention_hidden_size)
        self.word_predictor = PredictionHead(config.hidden_size, config.vocab_size)
        self.region_predictor = PredictionHead(config.vision_hidden_size, config.codebook_size)
        self.match_head = nn.Linear(config.co_attention_hidden_size, 1)
        self.codebook = RandomCodebook(config.patch_size, config.codebook_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RandomCodebook):
            module.init_codewords()

    def streams(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        zeroed: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Run both streams.

        A co-attention layer precedes each of the last layers of both streams: in the paper, text layers 6 to 11 and
        region layers 0 to 5. Earlier layers do not depend on the other stream.

        Args:
            pixel_values: (N, 3, H, W).
            input_ids, attention_mask: (N, L).
            zeroed: (N, R) bool, regions to hide.

        Returns:
            Words (N, L, D), regions (N, 1 + R, D'), and for each co-attention layer the weights of words,
            (N, heads, L, 1 + R), and of regions, (N, heads, 1 + R, L).
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = attention_mask[:, None, None].bool()  # (N, 1, 1, L)
        words, regions, weights = self.text.embeddings(input_ids=input_ids), self.regions(pixel_values, zeroed), []
        text, vision = list(self.text.encoder.layer), list(self.vision)
        count = len(self.co_attention_layers)
        text_start, vision_start = len(text) - count, len(vision) - count
        for layer in text[:text_start]:
            words = layer(words, mask)
        for layer in vision[:vision_start]:
            regions = layer(regions)
        for co_attention, text_layer, vision_layer in zip(
            self.co_attention_layers, text[text_start:], vision[vision_start:], strict=True
        ):
            words, regions, of_words, of_regions = co_attention(words, regions, mask)
            weights.append((of_words, of_regions))
            words, regions = text_layer(words, mask), vision_layer(regions)
        return words, regions, weights

    def forward(  # type: ignore[override]
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any
    ) -> PretrainingOutput:
        """Compute masked language modelling + classes of masked regions + image-text matching, unweighted.

        Each image is paired with its own caption and with another one of the batch. Words and regions are masked in
        both pairs but predicted only in the first, because another image's caption gives no information about them
        (Lu et al. 2020).

        pixel_values: (N, 3, H, W), normalised; input_ids, attention_mask: (N, L), row i the caption of image i.
        """
        other, other_mask, same = shift_captions(input_ids, attention_mask)
        matches = torch.cat([torch.ones_like(same), same])  # (2 N,)
        mask = torch.cat([attention_mask, other_mask])
        masked, labels = mask_tokens(
            torch.cat([input_ids, other]),
            mask,
            mask_token_id=self.config.mask_token_id,
            vocab_size=self.config.vocab_size,
            special_ids=tuple(self.config.special_token_ids),
            probability=self.config.mask_probability,
        )
        patches = patchify(pixel_values, self.config.patch_size)  # (N, R, 3·p²)
        region_mask, zeroed = self.hide_regions(2 * len(patches), patches.shape[1])
        words, regions = self.streams(pixel_values.repeat(2, 1, 1, 1), masked, mask, zeroed)[:2]
        token_mask = (labels != IGNORE_INDEX) & matches[:, None]
        region_mask = region_mask[: len(patches)]
        parts = {
            "mlm": F.cross_entropy(self.word_predictor(words[token_mask]), labels[token_mask]),
            "regions": region_loss(
                self.region_predictor(regions[: len(patches), 1:][region_mask]), self.codebook(patches[region_mask])
            ),
            "itm": F.binary_cross_entropy_with_logits(self.match_logit(words, regions), matches.to(words.dtype)),
        }
        return PretrainingOutput(parts["mlm"] + parts["regions"] + parts["itm"], parts)

    def hide_regions(self, count: int, regions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the regions to predict and those to zero, (count, R) bool each; 9 of 10 predicted regions are zeroed.

        The cells of a grid do not overlap. A detector's regions that overlap a zeroed one would have to be zeroed too.
        """
        masked = torch.rand(count, regions, device=self.device) < self.config.region_mask_probability
        return masked, masked & (torch.rand(count, regions, device=self.device) < 0.9)

    def match_logit(self, words: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """Log odds (N,) that text and image match, from h_CLS ⊙ h_IMG. Source: section 2.2."""
        both = F.relu(self.text_pooler(words[:, 0])) * F.relu(self.vision_pooler(regions[:, 0]))
        return self.match_head(both)[:, 0]

    def match_score(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log odds (N,) that text i matches image i; pixel_values: (N, 3, H, W); input_ids: (N, L)."""
        words, regions, _ = self.streams(pixel_values, input_ids, attention_mask)
        return self.match_logit(words, regions)

    def fill_mask(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        """Logits (N, L, V) for every token of the text; input_ids, attention_mask: (N, L)."""
        words, _, _ = self.streams(pixel_values, input_ids, attention_mask)
        return self.word_predictor(words)

    def co_attention(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Co-attention weights of tokens, (N, layers, heads, L, 1 + R), and of regions, (N, layers, heads, 1 + R, L).

        Region 0 is the whole image; the others follow row by row.
        """
        _, _, weights = self.streams(pixel_values, input_ids, attention_mask)
        of_words, of_regions = zip(*weights, strict=True)
        return torch.stack(of_words, 1), torch.stack(of_regions, 1)

    def attention_maps(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of each token to the regions in the last co-attention layer, mean over heads: (N, L, side, side).

        The rest, up to 1, goes to the global region.
        """
        maps = self.co_attention(pixel_values, input_ids, attention_mask)[0][:, -1].mean(1)[..., 1:]  # (N, L, R)
        return maps.unflatten(2, (round(maps.shape[2] ** 0.5), -1))


def region_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean KL(target ‖ softmax(logits)) over regions, 0 if there is none; logits, target: (M, K)."""
    each = F.kl_div(logits.log_softmax(-1), target, reduction="none").sum(-1)
    return each.sum() / max(len(each), 1)


AutoConfig.register("vilbert", VilbertConfig)
AutoModel.register(VilbertConfig, Vilbert)


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 32,
    region_dim: int = 2048,
    vision_hidden_size: int = 1024,
    vision_layers: int = 6,
    vision_heads: int = 8,
    vision_intermediate_size: int = 1024,
    text_hidden_size: int = 768,
    text_layers: int = 12,
    head_dim: int = 64,
    mlp_ratio: int = 4,
    co_attention_layers: int = 6,
    co_attention_hidden_size: int = 1024,
    co_attention_heads: int = 8,
    codebook_size: int = 1601,
    text_length: int = 512,
    mask_probability: float | Sequence[float] = 0.15,
    region_mask_probability: float = 0.15,
    dropout: float = 0.1,
    initializer_range: float = 0.02,
    vocab_size: int = 0,
) -> tuple[Vilbert, CLIPProcessor]:
    """Build a ViLBERT and its processor.

    Args:
        texts: corpus from which the vocabulary is built.
        region_dim: size of a region's features, before the stream.
        head_dim: width of an attention head of the text stream.
        co_attention_layers: number of co-attention layers, at most the number of layers of each stream.
        codebook_size: number of classes of regions.
        mask_probability: probability that a token is masked, or the bounds from which it is drawn for each caption.
        region_mask_probability: probability that a region is masked.
        initializer_range: standard deviation of the initial weights; use about 1/√width for short training.
        vocab_size: minimum number of rows of the embedding table.
    """
    processor = build_pair_processor(texts, image_size)
    tokenizer: Any = processor.tokenizer  # type: ignore[attr-defined]
    config = VilbertConfig(
        vocab_size=max(len(tokenizer), vocab_size),
        hidden_size=text_hidden_size,
        num_hidden_layers=text_layers,
        num_attention_heads=text_hidden_size // head_dim,
        intermediate_size=mlp_ratio * text_hidden_size,
        max_position_embeddings=text_length,
        image_size=image_size,
        patch_size=patch_size,
        region_dim=region_dim,
        vision_hidden_size=vision_hidden_size,
        vision_layers=vision_layers,
        vision_heads=vision_heads,
        vision_intermediate_size=vision_intermediate_size,
        co_attention_layers=co_attention_layers,
        co_attention_hidden_size=co_attention_hidden_size,
        co_attention_heads=co_attention_heads,
        codebook_size=codebook_size,
        mask_probability=mask_probability if isinstance(mask_probability, float | int) else list(mask_probability),
        region_mask_probability=region_mask_probability,
        dropout=dropout,
        initializer_range=initializer_range,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        special_token_ids=sorted(tokenizer.all_special_ids),
    )
    return Vilbert(config), processor
