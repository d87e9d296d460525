"""MaskVLM: predict the masked part of one modality from its visible part and from all of the other modality.

Each encoder runs on its whole input and on a masked one. Masked patches attend to the whole text and are predicted as
pixels, p(I | T); masked tokens attend to the whole image and are predicted as tokens, p(T | I). A contrastive loss
aligns the two encoders; a matching loss trains the two cross-modality encoders.
Source: Kwon et al. 2023, section 3.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, CLIPProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.blocks import Block, ZeroInitLinear, sinusoidal_positions, sinusoidal_positions_2d
from models.contrastive.losses import clip_loss
from models.masked.random_codebook import patchify
from models.masked.token_masking import IGNORE_INDEX, mask_tokens
from models.outputs import PretrainingOutput
from models.tokenizer import build_tokenizer


@strict
class MaskVLMConfig(PreTrainedConfig):
    """Sizes of the two encoders and of the cross-modality encoders, and the masking.

    stem_channels: channels of the convolutions of stride 2 before the last one; empty for a linear patch embedding.
    mask_ratio: share of an image's patches that are masked.
    mask_probability: probability that a token is masked.
    mim_weight: weight of the pixel loss in the sum; the paper uses 1.
    """

    model_type = "mask-vlm"

    image_size: int = 224
    patch_size: int = 16
    stem_channels: tuple[int, ...] | list[int] = ()
    hidden_size: int = 768
    image_layers: int = 12
    text_layers: int = 12
    cross_layers: int = 3
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    projection_dim: int = 256
    vocab_size: int = 50265
    max_position_embeddings: int = 77
    mask_ratio: float = 0.6
    mask_probability: float = 0.3
    mim_weight: float = 1.0
    mask_token_id: int = 0
    pad_token_id: int | None = 0
    special_ids: tuple[int, ...] | list[int] = (0,)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.stem_channels and 2 ** (len(self.stem_channels) + 1) != self.patch_size:
            raise ValueError(
                f"{len(self.stem_channels) + 1} strides of 2 do not make a patch_size of {self.patch_size}"
            )


class CrossBlock(nn.Module):
    """Pre-norm cross-attention to the other modality, and an MLP; starts as the identity.

    There is no self-attention. The output of the first token can therefore be computed without the other tokens.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attention_output = ZeroInitLinear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_input = nn.Linear(width, mlp_ratio * width)
        self.mlp_output = ZeroInitLinear(mlp_ratio * width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x: (N, Q, D) attends to context: (N, K, D) where mask: (N, 1, 1, K) is true; returns (N, Q, D)."""
        context = self.context_norm(context)
        q = self.query(self.attention_norm(x))
        q, k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, self.key(context), self.value(context))
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attention_output(y.transpose(1, 2).flatten(2))
        return x + self.mlp_output(F.gelu(self.mlp_input(self.mlp_norm(x))))


class CrossEncoder(nn.Module):
    """A stack of cross-attention blocks, and a norm."""

    def __init__(self, config: MaskVLMConfig, layers: int):
        super().__init__()
        sizes = config.hidden_size, config.num_attention_heads, config.mlp_ratio
        self.blocks = nn.ModuleList(CrossBlock(*sizes) for _ in range(layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x: (N, Q, D), context: (N, K, D), mask: (N, K), 1 where x may attend; returns (N, Q, D)."""
        where = None if mask is None else mask.bool()[:, None, None, :]
        for block in self.blocks:
            x = block(x, context, where)
        return self.norm(x)


class ImageEncoder(nn.Module):
    """A transformer over a class token, which represents the whole image, and the patches."""

    def __init__(self, config: MaskVLMConfig):
        super().__init__()
        self.patch_size, width = config.patch_size, config.hidden_size
        channels = (3, *config.stem_channels)
        stem: list[nn.Module] = []
        for inner, outer in pairwise(channels):
            stem += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.GELU()]
        size, padding = (3, 1) if config.stem_channels else (config.patch_size, 0)
        stride = 2 if config.stem_channels else config.patch_size
        self.stem = nn.Sequential(*stem, nn.Conv2d(channels[-1], width, size, stride=stride, padding=padding))
        self.cls_token, self.mask_token = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty((config.image_size // config.patch_size) ** 2, width))
        sizes = width, config.num_attention_heads, config.mlp_ratio
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(config.image_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixel_values: torch.Tensor, patch_mask: torch.Tensor | None = None) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); patch_mask: (N, P) bool, patches to mask; returns (N, 1 + P, D)."""
        if patch_mask is not None:  # zero pixels too: the stem's convolutions reach over patch borders
            pixel_values = pixel_values * ~patch_to_pixel_mask(patch_mask, self.patch_size, pixel_values.shape[-1])
        x = (
            self.stem(pixel_values.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)
        )  # (N, P, D)
        if patch_mask is not None:
            x = torch.where(patch_mask[..., None], self.mask_token, x)
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x + self.positions], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TextEncoder(nn.Module):
    """A transformer over tokens; the first token represents the whole text."""

    def __init__(self, config: MaskVLMConfig):
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))
        sizes = config.hidden_size, config.num_attention_heads, config.mlp_ratio
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(config.text_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask: (N, L); returns (N, L, D)."""
        x = self.tokens(input_ids) + self.positions[: input_ids.shape[1]]
        mask = attention_mask.bool()[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class MaskVLM(PreTrainedModel):
    """Two encoders that also run on masked inputs, and two cross-modality encoders between them."""

    config: MaskVLMConfig
    config_class = MaskVLMConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"

    def __init__(self, config: MaskVLMConfig):
        super().__init__(config)
        width = config.hidden_size
        self.image, self.text = ImageEncoder(config), TextEncoder(config)
        self.image_cross = CrossEncoder(config, config.cross_layers)
        self.text_cross = CrossEncoder(config, config.cross_layers)
        self.decoder = CrossEncoder(config, 1)
        self.pixel_head = nn.Linear(width, 3 * config.patch_size**2)
        self.word_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.word_bias = nn.Parameter(torch.empty(config.vocab_size))
        self.match_head = nn.Linear(2 * width, 2)
        self.image_projection = nn.Linear(width, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(width, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        width = self.config.hidden_size
        if isinstance(module, ZeroInitLinear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1 / math.sqrt(width))  # tied to the output: gives logits of unit size
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, ImageEncoder):
            nn.init.normal_(module.cls_token, std=0.02)
            nn.init.normal_(module.mask_token, std=0.02)
            module.positions.copy_(
                0.2 * sinusoidal_positions_2d(self.config.image_size // self.config.patch_size, width)
            )
        elif isinstance(module, TextEncoder):
            length = self.config.max_position_embeddings
            module.positions.copy_(sinusoidal_positions(torch.arange(length) / length, width) / math.sqrt(width))
        elif isinstance(module, MaskVLM):
            nn.init.zeros_(module.word_bias)
            nn.init.constant_(module.logit_scale, math.log(1 / 0.07))

    def get_input_embeddings(self) -> nn.Module:
        return self.text.tokens

    def get_image_features(self, pixel_values: torch.Tensor, **_: Any) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns unit vectors (N, E)."""
        return F.normalize(self.image_projection(self.image(pixel_values)[:, 0]), dim=-1)

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        """input_ids, attention_mask: (N, L); returns unit vectors (N, E)."""
        return F.normalize(self.text_projection(self.text(input_ids, attention_mask)[:, 0]), dim=-1)

    @property
    def scale(self) -> torch.Tensor:
        """The factor on cosine similarities, at most 100."""
        return self.logit_scale.clamp(max=math.log(100.0)).exp()

    def predict_patches(self, patches: torch.Tensor, text: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """patches: (N, 1 + P, D) of a masked image; text: (N, L, D), not masked; returns pixels (N, P, 3·p²)."""
        x = self.image_cross(patches[:, 1:], text, attention_mask)
        return self.pixel_head(self.decoder(x, text, attention_mask))

    def predict_tokens(self, words: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """words: (N, L, D) of a masked text; patches: (N, 1 + P, D), not masked; returns logits (N, L, V)."""
        return F.linear(self.word_head(self.text_cross(words, patches)), self.text.tokens.weight, self.word_bias)

    def match_logits(self, patches: torch.Tensor, text: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """patches: (N, 1 + P, D), text: (N, L, D), both not masked; returns logits (N, 2) of mismatch and match."""
        image_state = self.image_cross(patches[:, :1], text, attention_mask)[:, 0]
        text_state = self.text_cross(text[:, :1], patches)[:, 0]
        return self.match_head(torch.cat([image_state, text_state], dim=-1))

    def match_score(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); input_ids: (N, L); returns (N,), log p(match) − log p(mismatch)."""
        logits = self.match_logits(self.image(pixel_values), self.text(input_ids, attention_mask), attention_mask)
        return logits[:, 1] - logits[:, 0]

    def fill_mask(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        """input_ids: (N, L) with mask tokens; pixel_values: (N, 3, H, W); returns (N, L, V) logits."""
        return self.predict_tokens(self.text(input_ids, attention_mask), self.image(pixel_values))

    def reconstruct(
        self,
        pixel_values: torch.Tensor,
        patch_mask: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); patch_mask: (N, P) bool; returns (N, 3, H, W) with masked patches predicted."""
        patches = self.predict_patches(
            self.image(pixel_values, patch_mask), self.text(input_ids, attention_mask), attention_mask
        )
        size = self.config.patch_size
        predicted = F.fold(patches.transpose(1, 2), tuple(pixel_values.shape[-2:]), size, stride=size)
        return torch.where(patch_to_pixel_mask(patch_mask, size, pixel_values.shape[-1]), predicted, pixel_values)

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        *,
        patch_mask: torch.Tensor | None = None,
        masked_tokens: tuple[torch.Tensor, torch.Tensor] | None = None,
        caption_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Compute the loss, `mim_weight` · MIM + MLM + ITC + ITM.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            input_ids, attention_mask: (N, L), row i the caption of image i.
            patch_mask: (N, P) bool, patches to mask; drawn by default, as are the masked tokens.
            masked_tokens: the masked ids and the labels, (N, L) each, as `mask_tokens` returns them.
            caption_ids: (N,), equal for equal captions, which are then not negatives of each other.
        """
        patch_mask = self.hide_patches(len(pixel_values)) if patch_mask is None else patch_mask
        masked, labels = self.hide_words(input_ids, attention_mask) if masked_tokens is None else masked_tokens
        patches, text = self.image(pixel_values), self.text(input_ids, attention_mask)
        token_mask = labels != IGNORE_INDEX
        pixels = self.predict_patches(self.image(pixel_values, patch_mask), text, attention_mask)[patch_mask]
        logits = self.predict_tokens(self.text(masked, attention_mask), patches)[token_mask]
        image = F.normalize(self.image_projection(patches[:, 0]), dim=-1)
        caption = F.normalize(self.text_projection(text[:, 0]), dim=-1)
        same = (input_ids[:, None] == input_ids[None]).all(-1)
        parts = {
            "mim": F.l1_loss(pixels, patchify(pixel_values, self.config.patch_size)[patch_mask]),
            "mlm": F.cross_entropy(logits, labels[token_mask]),
            "itc": clip_loss(image, caption, self.scale, captions=caption_ids),
            "itm": self.matching(patches, text, attention_mask, self.scale * image @ caption.T, same),
        }
        loss = parts["mlm"] + parts["itc"] + parts["itm"] + self.config.mim_weight * parts["mim"]
        return PretrainingOutput(loss, parts)

    def matching(
        self,
        patches: torch.Tensor,
        text: torch.Tensor,
        attention_mask: torch.Tensor,
        logits: torch.Tensor,
        same: torch.Tensor,
    ) -> torch.Tensor:
        """Cross-entropy of N pairs and of up to 2N hard negatives.

        Each image gets the caption of another pair and each caption the image of another pair. They are drawn from the
        softmax of the contrastive `logits` over the batch, without the pairs whose captions are the `same`.

        Source: Li et al. 2021 (ALBEF), section 3.2.
        """
        logits = logits.detach().masked_fill(same, -math.inf)
        some = ~same.all(1)  # an image has no negative if all captions of the batch equal its own
        own = torch.arange(len(same), device=same.device)
        captions = logits[some].softmax(1).multinomial(1)[:, 0]
        images = logits.T[some].softmax(1).multinomial(1)[:, 0]
        i, j = torch.cat([own, own[some], images]), torch.cat([own, captions, own[some]])
        label = torch.arange(len(i), device=same.device) < len(own)
        return F.cross_entropy(self.match_logits(patches[i], text[j], attention_mask[j]), label.long())

    def hide_patches(self, count: int) -> torch.Tensor:
        """Draw the patches to mask, (count, P) bool, the same number for every image."""
        patches = len(self.image.positions)
        order = torch.rand(count, patches, device=self.device).argsort(1)
        return order >= int(patches * (1 - self.config.mask_ratio))

    def hide_words(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return masked ids and labels, (N, L) each."""
        config = self.config
        return mask_tokens(
            input_ids,
            attention_mask,
            mask_token_id=config.mask_token_id,
            vocab_size=config.vocab_size,
            special_ids=tuple(config.special_ids),
            probability=config.mask_probability,
        )


def patch_to_pixel_mask(patch_mask: torch.Tensor, patch_size: int, image_size: int) -> torch.Tensor:
    """Expand a mask of patches, (N, P), to a mask of their pixels, (N, 1, H, W)."""
    side = image_size // patch_size
    return patch_mask.view(-1, 1, side, side).repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 16,
    stem_channels: tuple[int, ...] | list[int] = (),
    hidden_size: int = 768,
    image_layers: int = 12,
    text_layers: int = 12,
    cross_layers: int = 3,
    head_dim: int = 64,
    mlp_ratio: int = 4,
    projection_dim: int = 256,
    text_length: int = 77,
    vocab_size: int = 0,
    mask_ratio: float = 0.6,
    mask_probability: float = 0.3,
    mim_weight: float = 1.0,
) -> tuple[MaskVLM, CLIPProcessor]:
    """Build a MaskVLM and its processor; `MaskVLMConfig` documents stem, masking and `mim_weight`.

    Args:
        texts: corpus from which the vocabulary is built.
        hidden_size: width of all encoders.
        head_dim: width of an attention head.
        vocab_size: minimum number of rows of the embedding table.
    """
    tokenizer = build_tokenizer(texts, extra=("<cls>", "<sep>", "<mask>"), frame="<cls> $A <sep>")
    tokenizer.padding_side = "right"
    config = MaskVLMConfig(
        image_size=image_size,
        patch_size=patch_size,
        stem_channels=stem_channels,
        hidden_size=hidden_size,
        image_layers=image_layers,
        text_layers=text_layers,
        cross_layers=cross_layers,
        num_attention_heads=hidden_size // head_dim,
        mlp_ratio=mlp_ratio,
        projection_dim=projection_dim,
        vocab_size=max(len(tokenizer), vocab_size),
        max_position_embeddings=text_length,
        mask_ratio=mask_ratio,
        mask_probability=mask_probability,
        mim_weight=mim_weight,
        mask_token_id=tokenizer.mask_token_id,  # type: ignore[arg-type]
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[arg-type]
        special_ids=tuple(tokenizer.all_special_ids),
    )
    side = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessorPil(size=side, do_center_crop=False, resample=2)  # bilinear
    return MaskVLM(config), CLIPProcessor(image_processor, tokenizer)


AutoConfig.register(MaskVLMConfig.model_type, MaskVLMConfig)
AutoModel.register(MaskVLMConfig, MaskVLM)
