"""The dual encoder: an image tower and a text tower with a shared embedding space."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from models.blocks import Block, ZeroInitLinear, sinusoidal_positions_2d
from models.contrastive.losses import clip_loss
from models.tiny.configuration import TinyConfig


@dataclass
class DualEncoderOutput(ModelOutput):
    """Output of `TinyDualEncoder`.

    loss: scalar, or None where `return_loss` was False.
    logits_per_image: (N, M).
    image_embeds: (N, E), unit length.
    text_embeds: (M, E), unit length.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


class TinyPreTrainedModel(PreTrainedModel):
    """Base class of the family's models: initial weights, loading and saving."""

    config: TinyConfig
    config_class = TinyConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Each kind of module initialises its own parameters: transformers skips modules without any.
        if isinstance(module, ZeroInitLinear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.09)  # gives logits of about unit variance with tied embeddings
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, VisionTower):
            side, width = self.config.patches_per_side, self.config.vision_hidden_size
            module.positions.copy_(0.2 * sinusoidal_positions_2d(side, width))
        elif isinstance(module, TextTower):
            nn.init.trunc_normal_(module.positions, std=0.02)
        elif isinstance(module, TinyDualEncoder):
            nn.init.constant_(module.logit_scale, math.log(1 / 0.07))


class VisionTower(nn.Module):
    """Three strided convolutions, then a transformer over the patches."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        width = config.vision_hidden_size
        first, second = config.stem_channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(second, width, 3, stride=2, padding=1),
        )
        self.positions = nn.Parameter(torch.empty(config.patches_per_side**2, width))
        self.patch_embeddings = nn.Identity()  # patch dropout hooks its output: patches with positions added
        self.blocks = nn.ModuleList(
            Block(width, config.vision_heads, config.mlp_ratio) for _ in range(config.vision_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W), float in −1..1 or raw uint8; returns (N, P, D) with P = (H/8)·(W/8)."""
        if pixel_values.dtype == torch.uint8:
            pixel_values = pixel_values.to(self.positions.dtype) / 127.5 - 1
        x = self.stem(pixel_values.contiguous(memory_format=torch.channels_last))  # (N, D, H/8, W/8)
        x = self.patch_embeddings(x.flatten(2).transpose(1, 2) + self.positions)  # (N, P, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TextTower(nn.Module):
    """A bidirectional transformer over a caption, averaged over its tokens."""

    def __init__(self, config: TinyConfig):
        super().__init__()
        width = config.text_hidden_size
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Parameter(torch.empty(config.max_position_embeddings, width))
        self.blocks = nn.ModuleList(
            Block(width, config.text_heads, config.mlp_ratio) for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask: (N, L); returns (N, D), the mean over tokens that are not padding."""
        x = self.tokens(input_ids) + self.positions[: input_ids.shape[1]]  # (N, L, D)
        mask = attention_mask.bool()[:, None, None, :]  # (N, 1, 1, L)
        for block in self.blocks:
            x = block(x, mask)
        weight = attention_mask.to(x.dtype)[..., None]  # (N, L, 1)
        return (self.norm(x) * weight).sum(1) / weight.sum(1).clamp(min=1)


class TinyDualEncoder(TinyPreTrainedModel):
    """A CLIP that trains in minutes on a CPU.

    Source: Radford et al. 2021, with mean pooling instead of CLS and EOS tokens.
    """

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        self.vision = VisionTower(config)
        self.text = TextTower(config)
        self.image_projection = nn.Linear(config.vision_hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text_hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text.tokens

    def embed_patches(self, patches: torch.Tensor) -> torch.Tensor:
        """patches: (N, P, D), output of the vision tower; returns unit vectors (N, E)."""
        return F.normalize(self.image_projection(patches.mean(1)), dim=-1)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns unit vectors (N, E)."""
        return self.embed_patches(self.vision(pixel_values))

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask: (N, L); returns unit vectors (N, E)."""
        return F.normalize(self.text_projection(self.text(input_ids, attention_mask)), dim=-1)

    @property
    def scale(self) -> torch.Tensor:
        """The factor on cosines, at most 100 as in CLIP."""
        return self.logit_scale.clamp(max=math.log(100.0)).exp()

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        return_loss: bool = True,
        caption_ids: torch.Tensor | None = None,
    ) -> DualEncoderOutput:
        """Compute InfoNCE.

        Args:
            pixel_values: (N, 3, H, W).
            input_ids, attention_mask: (N, L), row i the caption of image i.
            caption_ids: (N,), equal for equal captions, which are then not negatives of each other.
        """
        image = self.get_image_features(pixel_values)  # (N, E)
        text = self.get_text_features(input_ids, attention_mask)  # (N, E)
        loss = clip_loss(image, text, self.scale, captions=caption_ids) if return_loss else None
        return DualEncoderOutput(loss, self.scale * image @ text.T, image, text)
