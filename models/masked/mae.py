"""MAE: most of a picture is hidden, and its pixels are to be told from the few patches that are seen.

The model is transformers' `ViTMAEForPreTraining`, so that public weights load. Ours are the first weights, which
transformers 5.23 leaves without positions, and the two things that a trained one is asked for.
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
    """`ViTMAEConfig`, and how patches become one vector: their mean, or with what surprises the model at the fore."""

    pooling: Literal["mean", "surprise"] = "mean"


class MAEEncoder(ViTMAEModel):
    """`ViTMAEModel` that also takes a picture whole."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        first_weights(module)

    def whole(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns the states (N, 1 + P, D) with nothing hidden, CLS first."""
        embeddings = self.embeddings
        patches = embeddings.patch_embeddings(pixel_values) + embeddings.position_embeddings[:, 1:]  # (N, P, D)
        start = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(len(patches), -1, -1)
        states = torch.cat([start, patches], 1)
        for layer in self.layers:
            states = layer(states)
        return self.layernorm(states)


class MAE(ViTMAEForPreTraining):
    """`ViTMAEForPreTraining` that represents and paints; its loss is over hidden patches alone."""

    config: MAEConfig

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.vit = MAEEncoder(config)

    def train(self, mode: bool = True) -> "MAE":
        freeze_places(self)
        return super().train(mode)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        first_weights(module)

    def forward(  # type: ignore[override]
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None, **_: Any
    ) -> PretrainingOutput:
        """The mean squared error of hidden patches; with `config.norm_pix_loss` of patches of mean 0, deviation 1.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            noise: (N, P); the int(P · (1 − mask_ratio)) lowest of a row are seen. Drawn where not given.
        """
        loss: Any = super().forward(pixel_values=pixel_values, noise=noise).loss
        return PretrainingOutput(loss, {"pixels": loss})

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns the patches of a picture with nothing hidden as one vector, (N, D)."""
        states = self.vit.whole(pixel_values)[:, 1:]
        return states.mean(1) if self.config.pooling == "mean" else fore(states, self.surprise(pixel_values))

    @torch.no_grad()
    def surprise(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns the mean loss of each patch where it is hidden, (N, P).

        The picture is seen 1 / (1 − mask_ratio) times, each time by other patches, spread evenly.
        """
        target = self.patchify(pixel_values)
        if self.config.norm_pix_loss:
            target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
        rows, patches, _ = target.shape
        order = torch.cat(phases(math.isqrt(patches))).to(target.device)
        total, times = torch.zeros_like(target[..., 0]), torch.zeros_like(target[..., 0])
        seen = int(patches * (1 - self.config.mask_ratio))
        for start in range(0, patches, seen):
            noise = torch.ones(rows, patches, device=target.device)
            noise[:, order.roll(-start)[:seen]] = 0
            output: Any = super().forward(pixel_values=pixel_values, noise=noise)
            total += (output.logits - target).square().mean(2) * output.mask
            times += output.mask
        return total / times.clamp(min=1)

    def reconstruct(self, pixel_values: torch.Tensor, hidden: torch.Tensor, **_: Any) -> torch.Tensor:
        """The pictures with their hidden patches painted.

        A model of normalised patches says nothing of a patch's brightness: the mean and deviation of the patches
        that are seen stand in for it.

        Args:
            pixel_values: (N, 3, H, W), normalised; hidden patches are not looked at.
            hidden: (N, P) bool, row by row of the picture; P − int(P · (1 − mask_ratio)) of each.

        Returns:
            (N, 3, H, W), normalised.

        Raises:
            ValueError: another number of patches is hidden than the model knows.
        """
        check_hidden(hidden, self.config.mask_ratio)
        seen = self.patchify(pixel_values)  # (N, P, p² · 3)
        painted: Any = super().forward(pixel_values=pixel_values, noise=hidden.float()).logits
        if self.config.norm_pix_loss:
            patches = seen[~hidden].unflatten(0, (len(seen), -1))
            mean = patches.mean((1, 2), keepdim=True)
            deviation = (patches.var(2, keepdim=True) + 1e-6).sqrt().mean(1, keepdim=True)
            painted = painted * deviation + mean
        return self.unpatchify(torch.where(hidden[..., None], painted, seen))


def check_hidden(hidden: torch.Tensor, mask_ratio: float) -> None:
    """hidden: (N, P) bool; raises ValueError unless every row hides P − int(P · (1 − mask_ratio))."""
    patches = hidden.shape[1]
    wanted = patches - int(patches * (1 - mask_ratio))
    if (hidden.sum(1) != wanted).any():
        raise ValueError(f"hidden: {wanted} of {patches} patches of every picture, got {hidden.sum(1).tolist()[:8]}")


def phases(side: int) -> list[torch.Tensor]:
    """The patches of a square grid, row by row, in four even meshes: every second one of every second row."""
    grid = torch.arange(side * side).view(side, side)
    return [grid[down::2, right::2].flatten() for down in (0, 1) for right in (0, 1)]


def fore(states: torch.Tensor, surprise: torch.Tensor) -> torch.Tensor:
    """Σ s² h / Σ s² over states (N, P, D) and surprise (N, P): (N, D).

    A mean is of the backdrop where things are small. What can be told from around it is backdrop; what cannot is a
    thing. The square lets a few patches that stand out outweigh the many that do not.
    """
    weights = surprise.square()
    return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


@torch.no_grad()
def first_weights(module: nn.Module) -> None:
    """Xavier's uniform for linear maps, patches' included, and fixed sines for positions (appendix A.1).

    transformers would leave the positions of encoder and decoder and the mask token at zero: its embeddings take
    themselves for loaded once their convolution is drawn, and its decoder is zeroed after it was made.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        weight = module.weight
        bound = math.sqrt(6 / (len(weight) + weight[0].numel()))
        init.uniform_(weight, -bound, bound)
    elif isinstance(module, ViTMAEEmbeddings):
        init.normal_(module.cls_token, std=0.02)
        init.copy_(module.position_embeddings, sines(module.position_embeddings))
    elif isinstance(module, ViTMAEDecoder):
        init.normal_(module.mask_token, std=0.02)
        init.copy_(module.decoder_pos_embed, sines(module.decoder_pos_embed))


def freeze_places(model: nn.Module) -> None:
    """No gradient for positions: they are fixed, and loading makes every weight trainable."""
    for name, parameter in model.named_parameters():
        if name.endswith(("position_embeddings", "decoder_pos_embed", "predictor.positions")):
            parameter.requires_grad_(False)


def sines(places: torch.Tensor) -> torch.Tensor:
    """places: (1, P or 1 + P, D) of a square grid; returns sines and cosines of rows and columns, a zero for CLS."""
    count = places.shape[1]
    side = math.isqrt(count)
    return build_2d_sinusoidal_position_embedding(side, side, places.shape[2], cls_token=side * side < count)[None]


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 16,
    width: int = 1024,
    layers: int = 24,
    head_width: int = 64,
    decoder_width: int = 512,
    decoder_layers: int = 8,
    decoder_head_width: int = 32,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = False,
    pooling: Literal["mean", "surprise"] = "mean",
) -> tuple[MAE, ViTImageProcessorPil]:
    """A new MAE and its image processor; the defaults are ViT-L's. `texts` are for other families."""
    config = MAEConfig(
        **encoder_sizes(image_size, patch_size, width, layers, head_width),
        **decoder_sizes(decoder_width, decoder_layers, decoder_head_width),
        mask_ratio=mask_ratio,
        norm_pix_loss=norm_pix_loss,
        pooling=pooling,
    )
    return MAE(config), image_processor(image_size)


def encoder_sizes(image_size: int, patch_size: int, width: int, layers: int, head_width: int) -> dict[str, Any]:
    """A vision transformer's sizes as transformers names them."""
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // head_width,
    }


def decoder_sizes(width: int, layers: int, head_width: int) -> dict[str, Any]:
    """The decoder's sizes as transformers names them."""
    return {
        "decoder_hidden_size": width,
        "decoder_intermediate_size": 4 * width,
        "decoder_num_hidden_layers": layers,
        "decoder_num_attention_heads": width // head_width,
    }


def image_processor(image_size: int) -> ViTImageProcessorPil:
    """A square of `image_size`, with ImageNet's mean and deviation taken out."""
    side = {"height": image_size, "width": image_size}
    return ViTImageProcessorPil(size=side, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD)


# Public weights have names of old, which transformers translates class by class, for its own classes only.
for ours, stock in ((MAE, ViTMAEForPreTraining), (MAEEncoder, ViTMAEModel)):
    register_checkpoint_conversion_mapping(ours.__name__, get_checkpoint_conversion_mapping(stock.__name__) or [])
