"""CLIP: images and captions in one space; each image's own caption against all others of the batch.

The towers are transformers' `CLIPModel`, so that public weights load; loss and options are ours.
Source: Radford et al. 2021, figure 3. Options: SLIP (Mu et al. 2021), NegCLIP (Yuksekgonul et al. 2023) and gradient
caching (Gao et al. 2021).
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, initialization
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.contrastive.grad_cache import grad_cache_embed
from models.contrastive.losses import clip_loss, nt_xent
from models.outputs import PretrainingOutput
from models.sizes import forwards_sizes_to
from models.tokenizer import build_tokenizer

MAX_LOGIT_SCALE = math.log(100.0)
SLIP_TEMPERATURE = 0.1  # Mu et al. 2021


@strict
class ClipTrainingConfig(CLIPConfig):
    """`CLIPConfig` with training options; 0 disables an option, and transformers' own classes ignore them.

    micro_batch: rows whose activations are in memory at a time.
    logits_chunk: rows of logits that are in memory at a time.
    slip_weight: λ of SLIP's term; its projection head has layers of slip_hidden_size and slip_projection_dim outputs.
    """

    micro_batch: int = 0
    logits_chunk: int = 0
    slip_weight: float = 0.0
    slip_hidden_size: int = 4096
    slip_projection_dim: int = 256


class _HeadLinear(nn.Linear):
    """A linear layer of SLIP's head; its weights start with a standard deviation of 1/√fan-in."""


def _slip_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Three layers, (N, width) to (N, out), with batch norm between; on GPUs over the batches of all processes."""
    norm = nn.SyncBatchNorm if torch.cuda.is_available() else nn.BatchNorm1d
    first, second = _HeadLinear(width, hidden, bias=False), _HeadLinear(hidden, hidden, bias=False)
    last = _HeadLinear(hidden, out, bias=False)
    return nn.Sequential(first, norm(hidden), nn.ReLU(), second, norm(hidden), nn.ReLU(), last)


class CLIP(CLIPModel):
    """`CLIPModel` whose forward is the training objective, over the pairs of all processes."""

    config: ClipTrainingConfig  # type: ignore[assignment]
    config_class = ClipTrainingConfig

    def __init__(self, config: ClipTrainingConfig):
        super().__init__(config)
        if config.slip_weight:
            self.head = _slip_head(self.vision_embed_dim, config.slip_hidden_size, config.slip_projection_dim)
            self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, _HeadLinear):
            initialization.normal_(module.weight, std=module.in_features**-0.5)

    def embed(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values: (N, 3, H, W); input_ids, attention_mask: (M, L); returns unit vectors (N, D), (M, D)."""
        image = grad_cache_embed(self._embed_images, self.config.micro_batch, pixel_values)
        return image, grad_cache_embed(self._embed_texts, self.config.micro_batch, input_ids, attention_mask)

    def _embed_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features: Any = self.get_image_features(pixel_values=pixel_values)
        return F.normalize(features.pooler_output, dim=-1)

    def _embed_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        features: Any = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return F.normalize(features.pooler_output, dim=-1)

    def _embed_views(self, pixel_values: torch.Tensor) -> torch.Tensor:
        def pooled(part: torch.Tensor) -> torch.Tensor:
            return self.vision_model(pixel_values=part).pooler_output  # before the projection

        return F.normalize(self.head(grad_cache_embed(pooled, self.config.micro_batch, pixel_values)), dim=-1)

    @property
    def scale(self) -> torch.Tensor:
        """The factor on cosines, at most 100."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        views: torch.Tensor | None = None,
        negative_input_ids: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        caption_ids: torch.Tensor | None = None,
        negative_caption_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Compute InfoNCE + slip_weight · NT-Xent of the views.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            input_ids, attention_mask: (N, L), row i the caption of image i.
            views: (N, 2, 3, H, W), two views of each image; without them, as in evaluation, SLIP's term is left out.
            negative_input_ids, negative_attention_mask: (N·M, L'), hard negative captions.
            caption_ids, negative_caption_ids: (N,) and (N·M,), equal for equal captions, which are then not negatives.
        """
        image, text = self.embed(pixel_values, input_ids, attention_mask)  # (N, D) each
        negatives, size, chunk = None, self.config.micro_batch, self.config.logits_chunk
        if negative_input_ids is not None:
            negatives = grad_cache_embed(self._embed_texts, size, negative_input_ids, negative_attention_mask)
        ids: dict[str, Any] = {"captions": caption_ids, "negative_captions": negative_caption_ids}
        loss = contrast = clip_loss(image, text, self.scale, negatives, chunk, **ids)
        parts = {"contrast": contrast}
        if self.config.slip_weight and views is not None:
            one, other = (self._embed_views(part) for part in views.unbind(1))
            parts["views"] = nt_xent(one, other, SLIP_TEMPERATURE, chunk)
            loss = contrast + self.config.slip_weight * parts["views"]
        return PretrainingOutput(loss, parts)


def build_towers_config(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 16,
    vision_hidden_size: int = 768,
    vision_layers: int = 12,
    text_hidden_size: int = 512,
    text_layers: int = 12,
    projection_dim: int = 512,
    head_dim: int = 64,
    text_length: int = 77,
    vocab_size: int = 0,
) -> tuple[ClipTrainingConfig, CLIPProcessor]:
    """Build the config of CLIP's two towers, and a processor with a vocabulary from `texts`.

    Args:
        head_dim: size of an attention head, in both towers.
        text_length: maximum number of tokens of a caption.
        vocab_size: minimum number of rows of the embedding table.
    """
    # Not <eos>, whose id is 2: transformers treats a config with that id as an old one and pools another token.
    tokenizer = build_tokenizer(texts, extra=("<start>", "<end>"), frame="<start> $A <end>")
    tokenizer.padding_side = "right"
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<start>", "<end>"))
    text = {
        "vocab_size": max(len(tokenizer), vocab_size),
        "max_position_embeddings": text_length,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": image_size, "patch_size": patch_size}
    config = ClipTrainingConfig(
        text_config={**_tower_sizes(text_hidden_size, text_layers, head_dim), **text},
        vision_config={**_tower_sizes(vision_hidden_size, vision_layers, head_dim), **vision},
        projection_dim=projection_dim,
    )
    size = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessorPil(size=size, do_center_crop=False, resample=2)  # bilinear
    return config, CLIPProcessor(image_processor, tokenizer)


def _tower_sizes(hidden_size: int, layers: int, head_dim: int) -> dict[str, int]:
    return {
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // head_dim,
    }


@forwards_sizes_to(build_towers_config)
def build(
    texts: Iterable[str],
    *,
    micro_batch: int = 0,
    logits_chunk: int = 0,
    slip_weight: float = 0.0,
    slip_hidden_size: int = 4096,
    slip_projection_dim: int = 256,
    **sizes: Any,
) -> tuple[CLIP, CLIPProcessor]:
    """Build a CLIP and its processor; sizes as in `build_towers_config`, options as in `ClipTrainingConfig`."""
    config, processor = build_towers_config(texts, **sizes)
    config.micro_batch, config.logits_chunk = micro_batch, logits_chunk
    config.slip_weight, config.slip_hidden_size = slip_weight, slip_hidden_size
    config.slip_projection_dim = slip_projection_dim
    return CLIP(config), processor
