"""SigLIP from transformers: a sigmoid loss for every pair instead of a softmax over the batch.

Source: Zhai et al. 2023, algorithm 1.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel, SiglipProcessor, initialization
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.contrastive.grad_cache import grad_cache_embed
from models.contrastive.losses import siglip_loss
from models.outputs import PretrainingOutput
from models.tokenizer import build_tokenizer


@strict
class SiglipTrainingConfig(SiglipConfig):
    """`SiglipConfig` with training options, which transformers' own classes ignore.

    logit_scale, logit_bias: initial t and b. transformers initialises t = 1 and b = 0, so that each of the N² − N
        negatives would cost log 2.
    micro_batch: rows whose activations are in memory at a time; 0 for all.
    logits_chunk: rows of logits that are in memory at a time; 0 for all.
    """

    logit_scale: float = 10.0
    logit_bias: float = -10.0
    micro_batch: int = 0
    logits_chunk: int = 0


class SigLIP(SiglipModel):
    """`SiglipModel` whose forward is the training objective, over the pairs of all processes."""

    config: SiglipTrainingConfig  # type: ignore[assignment]
    config_class = SiglipTrainingConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SigLIP):
            initialization.constant_(module.logit_scale, math.log(self.config.logit_scale))
            initialization.constant_(module.logit_bias, self.config.logit_bias)

    def embed(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values: (N, 3, H, W); input_ids: (M, L); returns unit vectors (N, D), (M, D)."""
        image = grad_cache_embed(self._embed_images, self.config.micro_batch, pixel_values)
        return image, grad_cache_embed(self._embed_texts, self.config.micro_batch, input_ids)

    def _embed_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features: Any = self.get_image_features(pixel_values=pixel_values)
        return F.normalize(features.pooler_output, dim=-1)

    def _embed_texts(self, input_ids: torch.Tensor) -> torch.Tensor:
        features: Any = self.get_text_features(input_ids=input_ids)
        return F.normalize(features.pooler_output, dim=-1)

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        caption_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Compute the sigmoid loss.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            input_ids: (N, L), padded to the maximum length; row i the caption of image i.
            caption_ids: (N,), equal for equal captions, which are then not negatives of each other.
        """
        image, text = self.embed(pixel_values, input_ids)  # (N, D) each
        scale, bias, chunk = self.logit_scale.exp(), self.logit_bias, self.config.logits_chunk
        loss = siglip_loss(image, text, scale, bias, chunk, captions=caption_ids)
        return PretrainingOutput(loss, {"contrast": loss})


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 16,
    hidden_size: int = 768,
    layers: int = 12,
    heads: int = 12,
    text_layers: int = 0,
    text_length: int = 64,
    vocab_size: int = 0,
    logit_scale: float = 10.0,
    logit_bias: float = -10.0,
    micro_batch: int = 0,
    logits_chunk: int = 0,
) -> tuple[SigLIP, SiglipProcessor]:
    """Build a SigLIP with towers of equal width and its processor, with a vocabulary from `texts`.

    Args:
        text_layers: depth of the text tower; 0 for that of the vision tower.
        text_length: every caption is truncated and padded to it, because the text tower pools its last position.
        vocab_size: minimum number of rows of the embedding table.
        logit_scale, logit_bias, micro_batch, logits_chunk: as in `SiglipTrainingConfig`.
    """
    tokenizer = build_tokenizer(texts)
    tokenizer.padding_side = "right"
    tower = {"hidden_size": hidden_size, "intermediate_size": 4 * hidden_size, "num_attention_heads": heads}
    config = SiglipTrainingConfig(
        text_config={
            **tower,
            "num_hidden_layers": text_layers or layers,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "vocab_size": max(len(tokenizer), vocab_size),
            "max_position_embeddings": text_length,
            "projection_size": hidden_size,
        },
        vision_config={**tower, "num_hidden_layers": layers, "image_size": image_size, "patch_size": patch_size},
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        micro_batch=micro_batch,
        logits_chunk=logits_chunk,
    )
    image_processor = SiglipImageProcessorPil(size={"height": image_size, "width": image_size})
    return SigLIP(config), SiglipProcessor(image_processor, tokenizer)
