"""CLIP: pictures and captions in one space, each picture's own caption against all others of the batch.

The towers are transformers' `CLIPModel`, so that public weights load; loss and options are ours.
Source: Radford et al. 2021, figure 3.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models import tokenizer as tokenizers
from models.contrastive.losses import clip_loss
from models.outputs import PretrainingOutput

MAX_LOGIT_SCALE = math.log(100.0)


class CLIP(CLIPModel):
    """`CLIPModel` that learns across processes."""

    def embed(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values: (N, 3, H, W); input_ids, attention_mask: (M, L); returns unit vectors (N, D), (M, D)."""
        image = self.get_image_features(pixel_values=pixel_values).pooler_output
        text = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1)

    @property
    def scale(self) -> torch.Tensor:
        """The factor on cosines, at most 100."""
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """pixel_values: (N, 3, H, W), normalised; input_ids, attention_mask: (N, L), row i the caption of picture i."""
        image, text = self.embed(pixel_values, input_ids, attention_mask)
        loss = clip_loss(image, text, self.scale)
        return PretrainingOutput(loss, {"contrast": loss})


def towers(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 16,
    vision_width: int = 768,
    vision_layers: int = 12,
    text_width: int = 512,
    text_layers: int = 12,
    projection: int = 512,
    head_width: int = 64,
    text_length: int = 77,
    vocab_size: int = 0,
) -> tuple[CLIPConfig, CLIPProcessor]:
    """The config of CLIP's two towers, and a processor with a vocabulary made from `texts`.

    Args:
        head_width: width of an attention head, in both towers.
        vocab_size: rows of the embedding table, where the vocabulary needs fewer.
    """
    # Not <eos>, whose id is 2: transformers takes a config with that id for an old one and pools elsewhere.
    tokenizer = tokenizers.build(texts, extra=("<start>", "<end>"), frame="<start> $A <end>")
    tokenizer.padding_side = "right"
    start, end = tokenizer.convert_tokens_to_ids(["<start>", "<end>"])
    text = {
        "vocab_size": max(len(tokenizer), vocab_size),
        "max_position_embeddings": text_length,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": image_size, "patch_size": patch_size}
    config = CLIPConfig(
        text_config={**_tower(text_width, text_layers, head_width), **text},
        vision_config={**_tower(vision_width, vision_layers, head_width), **vision},
        projection_dim=projection,
    )
    side = {"height": image_size, "width": image_size}
    pictures = CLIPImageProcessorPil(size=side, do_center_crop=False, resample=2)  # bilinear
    return config, CLIPProcessor(pictures, tokenizer)


def _tower(width: int, layers: int, head_width: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // head_width,
    }


def build(texts: Iterable[str], **sizes: Any) -> tuple[CLIP, CLIPProcessor]:
    """A new CLIP and its processor; sizes as in `towers`."""
    config, processor = towers(texts, **sizes)
    return CLIP(config), processor
