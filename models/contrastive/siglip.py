"""SigLIP from transformers: a sigmoid for every pair instead of a softmax over the batch.

Source: Zhai et al. 2023, algorithm 1.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from transformers import SiglipConfig, SiglipModel, SiglipProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models import tokenizer as tokenizers
from models.outputs import PretrainingOutput

TEXT_LENGTH = 64  # every caption is padded to it: the text tower pools its last position


class SigLIP(SiglipModel):
    """`SiglipModel` whose forward is the objective."""

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, **_: Any) -> PretrainingOutput:  # type: ignore[override]
        """pixel_values: (N, 3, H, W), normalised; input_ids: (N, 64), row i the caption of picture i."""
        loss = super().forward(pixel_values=pixel_values, input_ids=input_ids, return_loss=True).loss
        return PretrainingOutput(loss, {"contrast": loss})


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 16,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
) -> tuple[SigLIP, SiglipProcessor]:
    """A new SigLIP of one width for both towers, and its processor with a vocabulary made from `texts`.

    transformers starts scale and bias at 0, that is t = 1 and b = 0, which makes every one of the N² − N
    negatives cost log 2 at the start; the paper's t = 10 and b = −10 are set here.
    """
    tokenizer = tokenizers.build(texts)
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    specials = {"pad_token_id": 0, "bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = SiglipConfig(
        text_config={
            **tower,
            **specials,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": TEXT_LENGTH,
            "projection_size": width,
        },
        vision_config={**tower, "image_size": image_size, "patch_size": patch_size},
    )
    model = SigLIP(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    pictures = SiglipImageProcessorPil(size={"height": image_size, "width": image_size})
    tokenizer.padding_side = "right"
    return model, SiglipProcessor(pictures, tokenizer)
