"""Llip: a picture's vector is mixed anew for every caption that it is compared with.

CLIP's vision tower gives K vectors of a picture instead of one; the caption says by cross-attention how much of each
it wants. Every pair of a picture and a caption is then one logit of SigLIP's loss.

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

from models.contrastive.clip import CLIP, Config, towers
from models.contrastive.grad_cache import in_parts
from models.contrastive.losses import gathered
from models.outputs import PretrainingOutput


def pair_costs(logits: torch.Tensor, first: int = 0) -> torch.Tensor:
    """−log σ(z_ij · logit_ij) of every pair, z = 1 for a picture's own caption and −1 for all others: (N, M).

    Args:
        logits: (N, M), pictures by captions; the own caption of row i is column `first + i`.

    Source: Zhai et al. 2023, equation of section 3.2.
    """
    sign = torch.ones_like(logits)
    sign.diagonal(first).neg_()
    return F.softplus(sign * logits)


@strict
class LlipConfig(Config):
    """CLIP's config, and how a picture's vector is mixed.

    `mixture_tokens` is K; `mixture_temperature` is τ, which stands where attention has the root of its width.
    With `chunk`, so many pictures are mixed at a time, each for all captions.
    """

    model_type = "llip"

    mixture_tokens: int = 64
    mixture_heads: int = 8
    mixture_temperature: float = 5.0
    logit_scale_init_value: float | int | None = math.log(10.0)
    logit_bias_init_value: float = -10.0

    def validate_architecture(self) -> None:
        """Raises: ValueError for no token, or heads that do not divide the width."""
        if self.mixture_tokens < 1:
            raise ValueError(f"mixture_tokens must be at least 1, got {self.mixture_tokens}")
        width = self.vision_config.hidden_size  # type: ignore[union-attr]
        if width % self.mixture_heads:
            raise ValueError(f"mixture_heads {self.mixture_heads} do not divide the vision width {width}")


class Mixer(nn.Module):
    """The learnt tokens, and the cross-attention's projections."""

    def __init__(self, text: int, vision: int, count: int):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count - 1, vision))
        self.query = nn.Linear(text, vision, bias=False)
        self.key = nn.Linear(vision, vision, bias=False)
        self.value = nn.Linear(vision, vision, bias=False)


class Llip(CLIP):
    """CLIP with K − 1 tokens beside its class token, and cross-attention from the caption to all K.

    The visual projection comes after the mixing; with K = 1 this is SigLIP on CLIP's towers.
    """

    config: LlipConfig  # type: ignore[assignment]
    config_class = LlipConfig

    def __init__(self, config: LlipConfig):
        super().__init__(config)
        text, vision = self.text_embed_dim, self.vision_embed_dim
        self.mixer = Mixer(text, vision, config.mixture_tokens)
        self.logit_bias = nn.Parameter(torch.tensor(config.logit_bias_init_value))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Mixer):
            init.normal_(module.tokens, std=module.tokens.shape[1] ** -0.5)
            for linear in (module.query, module.key, module.value):
                init.normal_(linear.weight, std=linear.in_features**-0.5)
        elif isinstance(module, Llip) and hasattr(module, "logit_bias"):  # CLIP's weights have none
            init.constant_(module.logit_bias, self.config.logit_bias_init_value)

    def placed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the vision tower's first layer takes, the K tokens first: (N, 3, H, W) to (N, K + P, width)."""
        seen = self.vision_model.embeddings(pixel_values)  # (N, 1 + P, width), the class token first
        more = self.mixer.tokens.to(seen.dtype).expand(len(seen), -1, -1)
        return self.vision_model.pre_layrnorm(torch.cat([seen[:, :1], more, seen[:, 1:]], 1))

    def mixture(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """h_i^k, the K vectors of every picture: (N, 3, H, W) to (N, K, width)."""
        hidden = self.vision_model.encoder(inputs_embeds=self.placed(pixel_values)).last_hidden_state
        return self.vision_model.post_layernorm(hidden[:, : self.config.mixture_tokens])

    def captions(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """g_j, the text tower's vector of every caption: (M, L) to (M, text width)."""
        return self.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output

    def weights(self, mixture: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """How much of each vector each caption wants: (N, K, width), (M, text width) to (N, M, heads, K), sum 1.

        softmax_k(⟨W_q g_j, W_k h_i^k⟩ / τ), head by head.
        """
        query, key = self._heads(self.mixer.query(captions)), self._heads(self.mixer.key(mixture))
        return (torch.einsum("mhd,nkhd->nmhk", query, key) / self.config.mixture_temperature).softmax(-1)

    def logits(self, mixture: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """t · cos(ẑ_ij, ẑ'_j) + b of every pair: (N, K, width), (M, text width) to (N, M)."""
        weights, value = self.weights(mixture, captions), self._heads(self.mixer.value(mixture))
        mixed = torch.einsum("nmhk,nkhd->nmhd", weights, value).flatten(2)  # (N, M, width)
        image = self.visual_projection(mixed)  # (N, M, D): a vector for every pair
        return self.scale * torch.cosine_similarity(image, self.text_projection(captions), dim=-1) + self.logit_bias

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.config.mixture_heads, -1))

    def similarity(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The logit of every pair: pixel_values (N, 3, H, W), input_ids and attention_mask (M, L) to (N, M)."""
        mixture, captions = self.mixture(pixel_values), self.captions(input_ids, attention_mask)
        return torch.cat([self.logits(part, captions) for part in mixture.split(self.config.chunk or len(mixture))])

    def mixing(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What `weights` says of pixel_values (N, 3, H, W) and captions (M, L): (N, M, heads, K)."""
        return self.weights(self.mixture(pixel_values), self.captions(input_ids, attention_mask))

    def attention_maps(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Where text i looks in picture i: (N, 1, side, side), which adds up to 1 at most.

        What the tower's last layer lets each of the K tokens see of a patch, as much of it as the text wants of the
        token; both are means over heads.
        """
        hidden, count = self.placed(pixel_values), self.config.mixture_tokens
        encoder: Any = self.vision_model.encoder
        *layers, last = encoder.layers
        for layer in layers:
            hidden = layer(hidden, None)
        attention, x = last.self_attn, last.layer_norm1(hidden)
        query, key = (f(x).unflatten(-1, (attention.num_heads, -1)) for f in (attention.q_proj, attention.k_proj))
        seen = (torch.einsum("nkhd,nphd->nhkp", query[:, :count], key) * attention.scale).softmax(-1).mean(1)
        mixture = self.vision_model.post_layernorm(last(hidden, None)[:, :count])
        wanted = self.weights(mixture, self.captions(input_ids, attention_mask)).mean(2).diagonal()  # (K, N)
        maps = torch.einsum("kn,nkp->np", wanted, seen[..., count:])
        return maps.unflatten(1, (1, round(maps.shape[1] ** 0.5), -1))

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """pixel_values: (N, 3, H, W), normalised; input_ids, attention_mask: (N, L), row i the caption of picture i.

        With several processes each one compares its own pictures with all captions; the mean over processes is the
        loss of the whole batch.
        """
        size = self.config.micro_batch
        mixture = in_parts(self.mixture, size, pixel_values)  # (N, K, width)
        captions = gathered(in_parts(self.captions, size, input_ids, attention_mask))  # (W·N, text width)
        place = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        pairs, chunk = len(mixture), self.config.chunk or len(mixture)

        def block(part: torch.Tensor, start: int) -> torch.Tensor:
            return pair_costs(self.logits(part, captions), place * pairs + start).sum()

        loss = mixture.new_zeros(())
        for start in range(0, pairs, chunk):
            part = mixture[start : start + chunk]
            loss = loss + (
                block(part, start) if chunk >= pairs else checkpoint(block, part, start, use_reentrant=False)
            )
        loss = loss / pairs
        return PretrainingOutput(loss, {"contrast": loss})


AutoConfig.register("llip", LlipConfig)
AutoModel.register(LlipConfig, Llip)


def build(
    texts: Iterable[str],
    *,
    mixture_tokens: int = 64,
    mixture_heads: int = 8,
    mixture_temperature: float = 5.0,
    logit_bias: float = -10.0,
    micro_batch: int = 0,
    chunk: int = 0,
    **sizes: Any,
) -> tuple[Llip, CLIPProcessor]:
    """A new Llip and its processor; options as in `LlipConfig`, sizes as in `clip.towers`.

    `logit_bias` is b at the start: −10 makes the many wrong pairs cost nothing, which a short training with small
    batches spends its time to undo.
    """
    clip, processor = towers(texts, **sizes)
    config = LlipConfig.from_dict(
        {
            **clip.to_dict(),
            "mixture_tokens": mixture_tokens,
            "mixture_heads": mixture_heads,
            "mixture_temperature": mixture_temperature,
            "logit_scale_init_value": math.log(10.0),
            "logit_bias_init_value": logit_bias,
            "micro_batch": micro_batch,
            "chunk": chunk,
        }
    )
    return Llip(config), processor
