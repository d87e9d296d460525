"""MAE: most patches of an image are masked, and their pixels are predicted from the few visible patches.

The model is transformers' `ViTMAEForPreTraining`, so that public weights load. Ours are the initial weights (positions
remain zero in transformers 5.23), the image features and the reconstruction.
Source: He et al. 2022, section 3.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel
from transformers import initialization as init
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEDecoder,
    ViTMAEEmbeddings,
    build_2d_sinusoidal_position_embedding,
)
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from models.outputs import PretrainingOutput


@strict
class MAEConfig(ViTMAEConfig):
    """`ViTMAEConfig` with the pooling of patches to one vector: the mean, or `loss_weighted_mean`."""

    pooling: Literal["mean", "loss_weighted"] = "mean"


class MAEEncoder(ViTMAEModel):
    """`ViTMAEModel` with a forward pass over all patches."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_weights(module)

    def forward_unmasked(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns the states (N, 1 + P, D) without masking, CLS first."""
        embeddings = self.embeddings
        patches = embeddings.patch_embeddings(pixel_values) + embeddings.position_embeddings[:, 1:]  # (N, P, D)
        cls_token = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(len(patches), -1, -1)
        states = torch.cat([cls_token, patches], 1)
        for layer in self.layers:
            states = layer(states)
        return self.layernorm(states)


class MAE(ViTMAEForPreTraining):
    """`ViTMAEForPreTraining` with image features and reconstruction; the loss is over masked patches only."""

    config: MAEConfig

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.vit = MAEEncoder(config)

    def train(self, mode: bool = True) -> "MAE":
        freeze_positions(self)
        return super().train(mode)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_weights(module)

    def forward(  # type: ignore[override]
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None, **_: Any
    ) -> PretrainingOutput:
        """Compute the mean squared error of masked patches; `config.norm_pix_loss` normalises each patch first.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            noise: (N, P); the int(P · (1 − mask_ratio)) patches with the lowest noise are visible. Drawn by default.
        """
        loss: Any = super().forward(pixel_values=pixel_values, noise=noise).loss
        return PretrainingOutput(loss, {"pixels": loss})

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns the pooled states of the unmasked patches, (N, D)."""
        states = self.vit.forward_unmasked(pixel_values)[:, 1:]
        if self.config.pooling == "mean":
            return states.mean(1)
        return loss_weighted_mean(states, self.patch_loss(pixel_values))

    @torch.no_grad()
    def patch_loss(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns the mean loss of each patch over the passes that mask it, (N, P).

        The image is encoded 1 / (1 − mask_ratio) times, each time with other visible patches, spread evenly.
        """
        target = self.patchify(pixel_values)  # (N, P, p² · 3)
        if self.config.norm_pix_loss:
            target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
        rows, patches, _ = target.shape
        order = torch.cat(interleaved_masks(math.isqrt(patches))).to(target.device)
        total, times = torch.zeros_like(target[..., 0]), torch.zeros_like(target[..., 0])
        visible = int(patches * (1 - self.config.mask_ratio))
        for start in range(0, patches, visible):
            noise = torch.ones(rows, patches, device=target.device)
            noise[:, order.roll(-start)[:visible]] = 0
            output: Any = super().forward(pixel_values=pixel_values, noise=noise)
            total += (output.logits - target).square().mean(2) * output.mask
            times += output.mask
        return total / times.clamp(min=1)

    def reconstruct(self, pixel_values: torch.Tensor, patch_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        """Replace the masked patches of images by predicted ones.

        With `norm_pix_loss` the model does not predict a patch's brightness: mean and deviation of the visible patches
        are used for it.

        Args:
            pixel_values: (N, 3, H, W), normalised; masked patches are not read.
            patch_mask: (N, P) bool, row by row of the image; P − int(P · (1 − mask_ratio)) are True in each.

        Returns:
            (N, 3, H, W), normalised.

        Raises:
            ValueError: the number of masked patches does not fit `mask_ratio`.
        """
        check_mask_count(patch_mask, self.config.mask_ratio)
        target = self.patchify(pixel_values)  # (N, P, p² · 3)
        predicted: Any = super().forward(pixel_values=pixel_values, noise=patch_mask.float()).logits
        if self.config.norm_pix_loss:
            patches = target[~patch_mask].unflatten(0, (len(target), -1))
            mean = patches.mean((1, 2), keepdim=True)
            deviation = (patches.var(2, keepdim=True) + 1e-6).sqrt().mean(1, keepdim=True)
            predicted = predicted * deviation + mean
        return self.unpatchify(torch.where(patch_mask[..., None], predicted, target))


def check_mask_count(patch_mask: torch.Tensor, mask_ratio: float) -> None:
    """patch_mask: (N, P) bool; raises ValueError unless every row masks P − int(P · (1 − mask_ratio)) patches."""
    patches = patch_mask.shape[1]
    expected = patches - int(patches * (1 - mask_ratio))
    if (patch_mask.sum(1) != expected).any():
        raise ValueError(
            f"patch_mask: mask {expected} of {patches} patches of every image (mask_ratio {mask_ratio}), "
            f"got {patch_mask.sum(1).tolist()[:8]}"
        )


def interleaved_masks(side: int) -> list[torch.Tensor]:
    """Split a square grid into four interleaved meshes, every second cell of every second row, as patch indices."""
    grid = torch.arange(side * side).view(side, side)
    return [grid[down::2, right::2].flatten() for down in (0, 1) for right in (0, 1)]


def loss_weighted_mean(states: torch.Tensor, patch_loss: torch.Tensor) -> torch.Tensor:
    """Σ l² h / Σ l² over states h (N, P, D) with patch losses l (N, P): (N, D).

    Where objects are small, the plain mean describes the background. Background can be predicted from its surroundings,
    objects cannot. The square lets a few patches with a high loss outweigh the many with a low one.
    """
    weights = patch_loss.square()
    return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """Initialise as in appendix A.1: Xavier uniform for linear layers and patch embeddings, sinusoidal positions.

    transformers leaves the positions of encoder and decoder and the mask token at zero: its embeddings count as loaded
    once their convolution is initialised, and its decoder is zeroed after its construction.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        weight = module.weight
        bound = math.sqrt(6 / (len(weight) + weight[0].numel()))
        init.uniform_(weight, -bound, bound)
    elif isinstance(module, ViTMAEEmbeddings):
        init.normal_(module.cls_token, std=0.02)
        init.copy_(module.position_embeddings, sinusoidal_grid(module.position_embeddings))
    elif isinstance(module, ViTMAEDecoder):
        init.normal_(module.mask_token, std=0.02)
        init.copy_(module.decoder_pos_embed, sinusoidal_grid(module.decoder_pos_embed))


def freeze_positions(model: nn.Module) -> None:
    """Disable the gradients of the fixed positions; loading makes every parameter trainable."""
    for name, parameter in model.named_parameters():
        if name.endswith(("position_embeddings", "decoder_pos_embed", "predictor.positions")):
            parameter.requires_grad_(False)


def sinusoidal_grid(positions: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of rows and columns in the shape of positions (1, P or 1 + P, D); zeros for CLS."""
    count = positions.shape[1]
    side = math.isqrt(count)
    return build_2d_sinusoidal_position_embedding(side, side, positions.shape[2], cls_token=side * side < count)[None]


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 16,
    hidden_size: int = 1024,
    layers: int = 24,
    head_dim: int = 64,
    decoder_hidden_size: int = 512,
    decoder_layers: int = 8,
    decoder_head_dim: int = 32,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = False,
    pooling: Literal["mean", "loss_weighted"] = "mean",
) -> tuple[MAE, ViTImageProcessorPil]:
    """Build an MAE and its image processor; the defaults are those of ViT-L. `texts` is not used."""
    config = MAEConfig(
        **encoder_sizes(image_size, patch_size, hidden_size, layers, head_dim),
        **decoder_sizes(decoder_hidden_size, decoder_layers, decoder_head_dim),
        mask_ratio=mask_ratio,
        norm_pix_loss=norm_pix_loss,
        pooling=pooling,
    )
    return MAE(config), build_image_processor(image_size)


def encoder_sizes(image_size: int, patch_size: int, hidden_size: int, layers: int, head_dim: int) -> dict[str, Any]:
    """Sizes of a vision transformer by transformers' names."""
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // head_dim,
    }


def decoder_sizes(hidden_size: int, layers: int, head_dim: int) -> dict[str, Any]:
    """Sizes of the decoder by transformers' names."""
    return {
        "decoder_hidden_size": hidden_size,
        "decoder_intermediate_size": 4 * hidden_size,
        "decoder_num_hidden_layers": layers,
        "decoder_num_attention_heads": hidden_size // head_dim,
    }


def build_image_processor(image_size: int) -> ViTImageProcessorPil:
    """Build a processor of square images, normalised by ImageNet's mean and deviation."""
    size = {"height": image_size, "width": image_size}
    return ViTImageProcessorPil(size=size, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD)


# Public weights have older parameter names. transformers maps them for its own classes only, by class name.
for ours, stock in ((MAE, ViTMAEForPreTraining), (MAEEncoder, ViTMAEModel)):
    register_checkpoint_conversion_mapping(ours.__name__, get_checkpoint_conversion_mapping(stock.__name__) or [])
