"""Llip: an image's embedding depends on the caption that it is compared with.

CLIP's vision tower gives K vectors of an image instead of one; the caption weights them by cross-attention. Every pair
of an image and a caption then has one logit of SigLIP's loss.

Source: Lavoie et al. 2024, section 3; the loss is Zhai et al. 2023, algorithm 1.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, CLIPProcessor
from transformers import initialization as init

from models.contrastive.clip import CLIP, ClipTrainingConfig, build_towers_config
from models.contrastive.grad_cache import grad_cache_embed
from models.contrastive.losses import all_gather_ids, all_gather_with_grad
from models.outputs import PretrainingOutput
from models.sizes import forwards_sizes_to


def sigmoid_pair_loss(logits: torch.Tensor, first: int = 0) -> torch.Tensor:
    """−log σ(z_ij · logit_ij) of every pair, z = 1 for an image's own caption and −1 for all others: (N, M).

    Args:
        logits: (N, M), images by captions; the own caption of row i is column `first + i`.

    Source: Zhai et al. 2023, equation of section 3.2.
    """
    sign = torch.ones_like(logits)
    sign.diagonal(first).neg_()
    return F.softplus(sign * logits)


@strict
class LlipConfig(ClipTrainingConfig):
    """CLIP's config with the options of the mixture.

    mixture_tokens: K.
    mixture_temperature: τ, in place of attention's √width.
    logits_chunk: images that are mixed at a time, each for all captions.
    """

    model_type = "llip"

    mixture_tokens: int = 64
    mixture_heads: int = 8
    mixture_temperature: float = 5.0
    logit_scale_init_value: float | int | None = math.log(10.0)
    logit_bias_init_value: float = -10.0

    def validate_architecture(self) -> None:
        """Raises: ValueError for less than one token, or heads that do not divide the vision tower's hidden size."""
        if self.mixture_tokens < 1:
            raise ValueError(f"mixture_tokens must be at least 1, got {self.mixture_tokens}")
        width = self.vision_config.hidden_size  # type: ignore[union-attr]
        if width % self.mixture_heads:
            raise ValueError(f"mixture_heads {self.mixture_heads} do not divide the vision hidden size {width}")


class CrossAttentionMixer(nn.Module):
    """The K − 1 learned tokens and the projections of the cross-attention."""

    def __init__(self, text_width: int, vision_width: int, mixture_tokens: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(mixture_tokens - 1, vision_width))
        self.query = nn.Linear(text_width, vision_width, bias=False)
        self.key = nn.Linear(vision_width, vision_width, bias=False)
        self.value = nn.Linear(vision_width, vision_width, bias=False)


class Llip(CLIP):
    """CLIP with K − 1 learned tokens next to its class token, and cross-attention from the caption to all K.

    The visual projection follows the mixing; with K = 1 this is SigLIP on CLIP's towers.
    """

    config: LlipConfig  # type: ignore[assignment]
    config_class = LlipConfig

    def __init__(self, config: LlipConfig):
        super().__init__(config)
        self.mixer = CrossAttentionMixer(self.text_embed_dim, self.vision_embed_dim, config.mixture_tokens)
        self.logit_bias = nn.Parameter(torch.tensor(config.logit_bias_init_value))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CrossAttentionMixer):
            init.normal_(module.tokens, std=module.tokens.shape[1] ** -0.5)
            for linear in (module.query, module.key, module.value):
                init.normal_(linear.weight, std=linear.in_features**-0.5)
        elif isinstance(module, Llip) and hasattr(module, "logit_bias"):  # not yet set while CLIP is initialised
            init.constant_(module.logit_bias, self.config.logit_bias_init_value)

    def patch_embeddings(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Input of the vision tower's first layer, the K tokens first: (N, 3, H, W) to (N, K + P, width)."""
        x = self.vision_model.embeddings(pixel_values)  # (N, 1 + P, width), the class token first
        learned = self.mixer.tokens.to(x.dtype).expand(len(x), -1, -1)  # (N, K − 1, width)
        return self.vision_model.pre_layrnorm(torch.cat([x[:, :1], learned, x[:, 1:]], 1))

    def mixture_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """h_i^k, the K vectors of every image: (N, 3, H, W) to (N, K, width)."""
        x = self.vision_model.encoder(inputs_embeds=self.patch_embeddings(pixel_values)).last_hidden_state
        return self.vision_model.post_layernorm(x[:, : self.config.mixture_tokens])

    def text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """g_j, the text tower's vector of every caption: (M, L) to (M, text width)."""
        return self.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output

    def attention_weights(self, tokens: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """softmax_k(⟨W_q g_j, W_k h_i^k⟩ / τ) in every head: (N, K, width), (M, text width) to (N, M, heads, K)."""
        query, key = self._heads(self.mixer.query(captions)), self._heads(self.mixer.key(tokens))
        return (torch.einsum("mhd,nkhd->nmhk", query, key) / self.config.mixture_temperature).softmax(-1)

    def logits(self, tokens: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """t · cos(ẑ_ij, ẑ'_j) + b of every pair: (N, K, width), (M, text width) to (N, M)."""
        weights, value = self.attention_weights(tokens, captions), self._heads(self.mixer.value(tokens))
        mixed = torch.einsum("nmhk,nkhd->nmhd", weights, value).flatten(2)  # (N, M, width)
        image = self.visual_projection(mixed)  # (N, M, D): one vector for every pair
        return self.scale * torch.cosine_similarity(image, self.text_projection(captions), dim=-1) + self.logit_bias

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.config.mixture_heads, -1))

    def similarity(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The logit of every pair: pixel_values (N, 3, H, W), input_ids and attention_mask (M, L) to (N, M)."""
        tokens, captions = self.mixture_tokens(pixel_values), self.text_features(input_ids, attention_mask)
        chunks = tokens.split(self.config.logits_chunk or len(tokens))
        return torch.cat([self.logits(chunk, captions) for chunk in chunks])

    def mixture_weights(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`attention_weights` of images (N, 3, H, W) and captions (M, L): (N, M, heads, K)."""
        return self.attention_weights(self.mixture_tokens(pixel_values), self.text_features(input_ids, attention_mask))

    def attention_maps(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of text i over the patches of image i: (N, 1, side, side), with a sum of at most 1.

        It is the attention of the K tokens to each patch in the tower's last layer, weighted by the text's attention
        to the tokens; both are means over heads.
        """
        x, count = self.patch_embeddings(pixel_values), self.config.mixture_tokens
        encoder: Any = self.vision_model.encoder
        *layers, last = encoder.layers
        for layer in layers:
            x = layer(x, None)
        attention, normed = last.self_attn, last.layer_norm1(x)
        query, key = (f(normed).unflatten(-1, (attention.num_heads, -1)) for f in (attention.q_proj, attention.k_proj))
        scores = torch.einsum("nkhd,nphd->nhkp", query[:, :count], key) * attention.scale
        to_patches = scores.softmax(-1).mean(1)[..., count:]  # (N, K, P)
        tokens = self.vision_model.post_layernorm(last(x, None)[:, :count])  # (N, K, width)
        weights = self.attention_weights(tokens, self.text_features(input_ids, attention_mask))  # (N, N, heads, K)
        to_tokens = weights.mean(2).diagonal()  # (K, N)
        maps = torch.einsum("kn,nkp->np", to_tokens, to_patches)
        return maps.unflatten(1, (1, round(maps.shape[1] ** 0.5), -1))

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        caption_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Compute the sigmoid loss.

        Each process compares its own images with the captions of all processes; the mean over processes is the loss of
        the whole batch.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            input_ids, attention_mask: (N, L), row i the caption of image i.
            caption_ids: (N,), equal for equal captions, which are then not negatives of each other.
        """
        size = self.config.micro_batch
        tokens = grad_cache_embed(self.mixture_tokens, size, pixel_values)  # (N, K, width)
        captions = grad_cache_embed(self.text_features, size, input_ids, attention_mask)
        captions = all_gather_with_grad(captions)  # (W·N, text width)
        ids = None if caption_ids is None else all_gather_ids(caption_ids)  # (W·N,)
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        pairs, chunk = len(tokens), self.config.logits_chunk or len(tokens)

        def block(part: torch.Tensor, start: int) -> torch.Tensor:
            losses = sigmoid_pair_loss(self.logits(part, captions), rank * pairs + start)
            if ids is not None:
                same = ids[rank * pairs + start :][: len(part), None] == ids
                same.diagonal(rank * pairs + start).fill_(False)
                losses = losses.masked_fill(same, 0.0)
            return losses.sum()

        loss = tokens.new_zeros(())
        for start in range(0, pairs, chunk):
            part = tokens[start : start + chunk]
            loss = loss + (
                block(part, start) if chunk >= pairs else checkpoint(block, part, start, use_reentrant=False)
            )
        loss = loss / pairs
        return PretrainingOutput(loss, {"contrast": loss})


AutoConfig.register("llip", LlipConfig)
AutoModel.register(LlipConfig, Llip)


@forwards_sizes_to(build_towers_config)
def build(
    texts: Iterable[str],
    *,
    mixture_tokens: int = 64,
    mixture_heads: int = 8,
    mixture_temperature: float = 5.0,
    logit_bias: float = -10.0,
    micro_batch: int = 0,
    logits_chunk: int = 0,
    **sizes: Any,
) -> tuple[Llip, CLIPProcessor]:
    """Build a Llip and its processor; options as in `LlipConfig`, sizes as in `build_towers_config`.

    Args:
        logit_bias: initial b. With −10 the many negative pairs cost nothing at first; a short training with small
            batches spends its time on undoing that.
    """
    clip, processor = build_towers_config(texts, **sizes)
    config = LlipConfig.from_dict(
        {
            **clip.to_dict(),
            "mixture_tokens": mixture_tokens,
            "mixture_heads": mixture_heads,
            "mixture_temperature": mixture_temperature,
            "logit_scale_init_value": math.log(10.0),
            "logit_bias_init_value": logit_bias,
            "micro_batch": micro_batch,
            "logits_chunk": logits_chunk,
        }
    )
    return Llip(config), processor
