"""SigLIP from transformers: a sigmoid for every pair instead of a softmax over the batch.

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

from models import tokenizer as tokenizers
from models.contrastive.grad_cache import in_parts
from models.contrastive.losses import siglip_loss
from models.outputs import PretrainingOutput


@strict
class Config(SiglipConfig):
    """`SiglipConfig` and what training may add; stock classes pass over it.

    logit_scale, logit_bias: t and b at the start; transformers starts both at 0, that is t = 1 and b = 0, which makes
    every one of the N² − N negatives cost log 2.
    micro_batch: rows whose activations exist at a time. chunk: rows of logits that exist at a time. Both are off at 0.
    """

    logit_scale: float = 10.0
    logit_bias: float = -10.0
    micro_batch: int = 0
    chunk: int = 0


class SigLIP(SiglipModel):
    """`SiglipModel` whose forward is the objective, across processes."""

    config: Config  # type: ignore[assignment]
    config_class = Config

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SigLIP):
            initialization.constant_(module.logit_scale, math.log(self.config.logit_scale))
            initialization.constant_(module.logit_bias, self.config.logit_bias)

    def embed(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values: (N, 3, H, W); input_ids: (M, L); returns unit vectors (N, D), (M, D)."""
        image = in_parts(self._embed_images, self.config.micro_batch, pixel_values)
        return image, in_parts(self._embed_texts, self.config.micro_batch, input_ids)

    def _embed_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features: Any = self.get_image_features(pixel_values=pixel_values)
        return F.normalize(features.pooler_output, dim=-1)

    def _embed_texts(self, input_ids: torch.Tensor) -> torch.Tensor:
        features: Any = self.get_text_features(input_ids=input_ids)
        return F.normalize(features.pooler_output, dim=-1)

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, **_: Any) -> PretrainingOutput:  # type: ignore[override]
        """pixel_values: (N, 3, H, W), normalised; input_ids: (N, L), padded to L; row i the caption of picture i."""
        image, text = self.embed(pixel_values, input_ids)
        loss = siglip_loss(image, text, self.logit_scale.exp(), self.logit_bias, self.config.chunk)
        return PretrainingOutput(loss, {"contrast": loss})


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 16,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    text_layers: int = 0,
    text_length: int = 64,
    vocab_size: int = 0,
    logit_scale: float = 10.0,
    logit_bias: float = -10.0,
    micro_batch: int = 0,
    chunk: int = 0,
) -> tuple[SigLIP, SiglipProcessor]:
    """A new SigLIP of one width for both towers, and its processor with a vocabulary made from `texts`.

    Args:
        text_layers: of the text tower, where it is not as deep as the picture tower.
        text_length: every caption is cut and padded to it, because the text tower pools its last position.
        vocab_size: rows of the embedding table, where the vocabulary needs fewer.
        logit_scale, logit_bias, micro_batch, chunk: as in `Config`.
    """
    tokenizer = tokenizers.build(texts)
    tokenizer.padding_side = "right"
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    config = Config(
        text_config={
            **tower,
            "num_hidden_layers": text_layers or layers,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "vocab_size": max(len(tokenizer), vocab_size),
            "max_position_embeddings": text_length,
            "projection_size": width,
        },
        vision_config={**tower, "num_hidden_layers": layers, "image_size": image_size, "patch_size": patch_size},
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        micro_batch=micro_batch,
        chunk=chunk,
    )
    pictures = SiglipImageProcessorPil(size={"height": image_size, "width": image_size})
    return SigLIP(config), SiglipProcessor(pictures, tokenizer)
