"""CLIP: pictures and captions in one space, each picture's own caption against all others of the batch.

The towers are transformers' `CLIPModel`, so that public weights load; loss and options are ours.
Source: Radford et al. 2021, figure 3. Options: SLIP (Mu et al. 2021), NegCLIP (Yuksekgonul et al. 2023) and batches in
parts (Gao et al. 2021).
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

from models import tokenizer as tokenizers
from models.contrastive.grad_cache import in_parts
from models.contrastive.losses import clip_loss, nt_xent
from models.outputs import PretrainingOutput

MAX_LOGIT_SCALE = math.log(100.0)
VIEW_TEMPERATURE = 0.1  # Mu et al. 2021


@strict
class Config(CLIPConfig):
    """`CLIPConfig` and what training may add; all of it is off at 0, and stock classes pass over it.

    micro_batch: rows whose activations exist at a time. chunk: rows of logits that exist at a time.
    slip_weight: λ of SLIP's term, whose head is slip_width wide and ends in slip_projection numbers.
    """

    micro_batch: int = 0
    chunk: int = 0
    slip_weight: float = 0.0
    slip_width: int = 4096
    slip_projection: int = 256


class _HeadLayer(nn.Linear):
    """A linear map of SLIP's head; its weights start at 1/√fan-in."""


def _head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Three layers, (N, width) to (N, out), with statistics of the batch in between: on GPUs that of all processes."""
    norm = nn.SyncBatchNorm if torch.cuda.is_available() else nn.BatchNorm1d
    first, second = _HeadLayer(width, hidden, bias=False), _HeadLayer(hidden, hidden, bias=False)
    last = _HeadLayer(hidden, out, bias=False)
    return nn.Sequential(first, norm(hidden), nn.ReLU(), second, norm(hidden), nn.ReLU(), last)


class CLIP(CLIPModel):
    """`CLIPModel` that learns across processes."""

    config: Config  # type: ignore[assignment]
    config_class = Config

    def __init__(self, config: Config):
        super().__init__(config)
        if config.slip_weight:
            self.head = _head(self.vision_embed_dim, config.slip_width, config.slip_projection)
            self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, _HeadLayer):
            initialization.normal_(module.weight, std=module.in_features**-0.5)

    def embed(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values: (N, 3, H, W); input_ids, attention_mask: (M, L); returns unit vectors (N, D), (M, D)."""
        image = in_parts(self._embed_images, self.config.micro_batch, pixel_values)
        return image, in_parts(self._embed_texts, self.config.micro_batch, input_ids, attention_mask)

    def _embed_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features: Any = self.get_image_features(pixel_values=pixel_values)
        return F.normalize(features.pooler_output, dim=-1)

    def _embed_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        features: Any = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return F.normalize(features.pooler_output, dim=-1)

    def _embed_views(self, pixel_values: torch.Tensor) -> torch.Tensor:
        def pooled(part: torch.Tensor) -> torch.Tensor:
            return self.vision_model(pixel_values=part).pooler_output  # before the projection

        return F.normalize(self.head(in_parts(pooled, self.config.micro_batch, pixel_values)), dim=-1)

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
        **_: Any,
    ) -> PretrainingOutput:
        """The loss is contrast + slip_weight · views.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            input_ids, attention_mask: (N, L), row i the caption of picture i.
            views: (N, 2, 3, H, W), two views of each picture; without them, as in evaluation, SLIP's term is left out.
            negative_input_ids, negative_attention_mask: (N·M, L'), captions that are nearly right and wrong.
        """
        image, text = self.embed(pixel_values, input_ids, attention_mask)
        negatives, size, chunk = None, self.config.micro_batch, self.config.chunk
        if negative_input_ids is not None:
            negatives = in_parts(self._embed_texts, size, negative_input_ids, negative_attention_mask)
        loss = contrast = clip_loss(image, text, self.scale, negatives, chunk)
        parts = {"contrast": contrast}
        if self.config.slip_weight and views is not None:
            one, other = (self._embed_views(part) for part in views.unbind(1))
            parts["views"] = nt_xent(one, other, VIEW_TEMPERATURE, chunk)
            loss = contrast + self.config.slip_weight * parts["views"]
        return PretrainingOutput(loss, parts)


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
) -> tuple[Config, CLIPProcessor]:
    """The config of CLIP's two towers, and a processor with a vocabulary made from `texts`.

    Args:
        head_width: width of an attention head, in both towers.
        vocab_size: rows of the embedding table, where the vocabulary needs fewer.
    """
    # Not <eos>, whose id is 2: transformers takes a config with that id for an old one and pools elsewhere.
    tokenizer = tokenizers.build(texts, extra=("<start>", "<end>"), frame="<start> $A <end>")
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
    config = Config(
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


def build(
    texts: Iterable[str],
    *,
    micro_batch: int = 0,
    chunk: int = 0,
    slip_weight: float = 0.0,
    slip_width: int = 4096,
    slip_projection: int = 256,
    **sizes: Any,
) -> tuple[CLIP, CLIPProcessor]:
    """A new CLIP and its processor; sizes as in `towers`, the rest as in `Config`."""
    config, processor = towers(texts, **sizes)
    config.micro_batch, config.chunk = micro_batch, chunk
    config.slip_weight, config.slip_width, config.slip_projection = slip_weight, slip_width, slip_projection
    return CLIP(config), processor
