"""I-JEPA: from one part of a picture, the features of other parts, as a slow copy of the encoder sees them.

The encoders are transformers' `IJepaModel`, so that public weights load and `IJepaModel` loads ours; masks, predictor
and slow copy are here. Loss and masks are those of the published code: smooth L1 on layer-normed targets.
Source: Assran et al. 2023, section 3.
"""

import math
from collections.abc import Iterable
from copy import deepcopy
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import IJepaConfig, IJepaModel
from transformers import initialization as init
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.ijepa.modeling_ijepa import IJepaEmbeddings, IJepaLayer, IJepaPreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from models.masked.mae import encoder_sizes, fore, freeze_places, image_processor, phases, sines
from models.outputs import PretrainingOutput
from models.sizes import declared

DRAWS = 20  # of a row's blocks, before one that leaves too little context is taken


@strict
class IJepaPretrainingConfig(IJepaConfig):
    """`IJepaConfig` with what learning takes; the defaults are ViT-H/14's.

    Scales are shares of the patches, the context's before the targets are taken out of it, aspects height over width.
    `momentum` is the slow copy's at the first of `total_steps` steps, and 1 at the last. `pooling` makes patches one
    vector: their mean, as published, or with what surprises the predictor at the fore.
    """

    predictor_size: int = 384
    predictor_layers: int = 12
    predictor_heads: int = 16
    target_blocks: int = 4
    target_scale: tuple[float, float] | list[float] = (0.15, 0.2)
    target_aspect: tuple[float, float] | list[float] = (0.75, 1.5)
    context_scale: tuple[float, float] | list[float] = (0.85, 1.0)
    min_context: int = 10
    momentum: float = 0.996
    total_steps: int = 187_500
    pooling: Literal["mean", "surprise"] = "mean"


class IJepaEncoder(IJepaModel):
    """`IJepaModel` with fixed sines for positions, and a pass over some patches only."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, IJepaEmbeddings):
            init.copy_(module.position_embeddings, sines(module.position_embeddings))

    def visible(self, pixel_values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); places: (N, K); returns the states (N, K, D) of those patches by themselves."""
        states = taken(self.embeddings(pixel_values), places)
        for layer in self.layers:
            states = layer(states)
        return self.layernorm(states)


class Predictor(nn.Module):
    """A narrow transformer that is given the context and the places of a block, and says the block's features."""

    def __init__(self, config: IJepaPretrainingConfig):
        super().__init__()
        narrow = deepcopy(config)
        narrow.hidden_size, narrow.intermediate_size = config.predictor_size, 4 * config.predictor_size
        narrow.num_attention_heads = config.predictor_heads
        self.embed = nn.Linear(config.hidden_size, config.predictor_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.predictor_size))
        patches = (config.image_size // config.patch_size) ** 2  # type: ignore[operator]
        self.positions = nn.Parameter(torch.zeros(1, patches, config.predictor_size))
        self.layers = nn.ModuleList([IJepaLayer(narrow) for _ in range(config.predictor_layers)])
        self.norm = nn.LayerNorm(config.predictor_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.predictor_size, config.hidden_size)

    def forward(self, context: torch.Tensor, places: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """context: (N, K, D) of patches `places` (N, K); targets: (N, B, T) patches; returns (N, B, T, D).

        Every block is predicted by itself: no block's mask tokens see another's.
        """
        rows, blocks, size = targets.shape
        positions = self.positions.expand(rows, -1, -1)
        known = self.embed(context) + taken(positions, places)  # (N, K, W)
        asked = self.mask_token + taken(positions, targets.flatten(1))  # (N, B·T, W)
        known = known[:, None].expand(-1, blocks, -1, -1).flatten(0, 1)
        states = torch.cat([known, asked.view(rows * blocks, size, -1)], 1)  # (N·B, K + T, W)
        for layer in self.layers:
            states = layer(states)
        return self.head(self.norm(states[:, -size:])).unflatten(0, (rows, blocks))


class IJepa(IJepaPreTrainedModel):
    """Context encoder, predictor and the slow copy `ijepa`, which represents and is what loads elsewhere."""

    config: IJepaPretrainingConfig

    def __init__(self, config: IJepaPretrainingConfig):
        super().__init__(config)
        self.ijepa = IJepaEncoder(config)
        self.context = IJepaEncoder(config)
        self.predictor = Predictor(config)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.post_init()
        self.train()

    def train(self, mode: bool = True) -> "IJepa":
        self.ijepa.requires_grad_(False)
        freeze_places(self)
        return super().train(mode)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Predictor):
            init.trunc_normal_(module.mask_token, std=self.config.initializer_range)
            init.copy_(module.positions, sines(module.positions))
        elif module is self:
            init.zeros_(self.steps)
            # Both begin alike; weights of an encoder alone are those of both.
            for own, slow in zip(self.context.parameters(), self.ijepa.parameters(), strict=True):
                init.copy_(own, slow)

    def forward(
        self,
        pixel_values: torch.Tensor,
        places: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Smooth L1 between predicted features and LN(f̄(picture)), f̄ the slow copy, on the targets' patches.

        In training the slow copy first follows the step before, so a call is a step: no gradient accumulation.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            places, targets: (N, K) patches of the context and (N, B, T) of the target blocks, as `multiblock` draws
                them where they are not given.
        """
        if self.training:
            self.follow()
        if places is None or targets is None:
            drawn = multiblock(len(pixel_values), self.config)
            places, targets = (part.to(pixel_values.device) for part in drawn)
        with torch.no_grad():
            whole = self.ijepa(pixel_values).last_hidden_state  # (N, P, D), of the whole picture
            truth = taken(F.layer_norm(whole, whole.shape[-1:]), targets.flatten(1)).view(*targets.shape, -1)
        context = self.context.visible(pixel_values, places)  # (N, K, D)
        loss = F.smooth_l1_loss(self.predictor(context, places, targets), truth)
        return PretrainingOutput(loss, {"features": loss})

    @torch.no_grad()
    def follow(self) -> None:
        """f̄ ← m · f̄ + (1 − m) · f for the step that was, numbered from 0 (section 3, "target-encoder")."""
        if step := int(self.steps):
            momentum = self.momentum(step - 1)
            for slow, own in zip(self.ijepa.parameters(), self.context.parameters(), strict=True):
                slow.lerp_(own, 1 - momentum)
        self.steps += 1

    def momentum(self, step: int) -> float:
        """m of a step: from `config.momentum` to 1 along a line."""
        start = self.config.momentum
        return start + (1 - start) * min(1.0, step / self.config.total_steps)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns the slow copy's patches as one vector, (N, D)."""
        states = self.ijepa(pixel_values).last_hidden_state
        return states.mean(1) if self.config.pooling == "mean" else fore(states, self.surprise(pixel_values, states))

    @torch.no_grad()
    def surprise(self, pixel_values: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """states: (N, P, D) of the slow copy; returns the loss of each patch, told from the other meshes, (N, P)."""
        rows, patches, width = states.shape
        truth = F.layer_norm(states, (width,))
        meshes = [mesh.to(states.device) for mesh in phases(math.isqrt(patches))]
        found = torch.zeros_like(states[..., 0])
        for i, mesh in enumerate(meshes):
            places = torch.cat(meshes[:i] + meshes[i + 1 :]).expand(rows, -1)
            context = self.context.visible(pixel_values, places)
            said = self.predictor(context, places, mesh.expand(rows, 1, -1))[:, 0]
            found[:, mesh] = F.smooth_l1_loss(said, truth[:, mesh], reduction="none").mean(2)
        return found


def taken(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """states: (N, P, D); places: (N, K); returns (N, K, D)."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def multiblock(count: int, config: IJepaPretrainingConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of patches to predict, and a large block without them to predict from.

    Sizes are drawn once for all pictures, places for each; contexts are cut at random to the smallest one, so that they
    make one tensor. A picture whose targets leave fewer than `config.min_context` patches is drawn again, 20 times at
    most; context and targets never meet.

    Returns:
        context (count, K) and targets (count, B, T), numbers of patches row by row.

    Source: section 3 and appendix A.1; the published `multiblock.py` for what the paper leaves open.
    """
    side = config.image_size // config.patch_size  # type: ignore[operator]
    target = block_size(side, config.target_scale, config.target_aspect)
    large = block_size(side, config.context_scale, (1.0, 1.0))
    targets = blocks(count, config.target_blocks, side, target)  # (N, B, T)
    context = remaining(side, large, targets)  # (N, P) bool
    for _ in range(DRAWS):
        short = (context.sum(1) < config.min_context).nonzero()[:, 0]
        if not len(short):
            break
        targets[short] = blocks(len(short), config.target_blocks, side, target)
        context[short] = remaining(side, large, targets[short])
    keep = int(context.sum(1).min())
    if not keep:
        raise ValueError(f"targets cover a whole context of {side}×{side} patches; make target_scale smaller")
    order = (torch.rand(context.shape) + ~context).argsort(1)  # a context's patches first, in any order
    return order[:, :keep], targets


def block_size(side: int, scale: Any, aspect: Any) -> tuple[int, int]:
    """Height and width in patches; one draw sets both scale and aspect."""
    draw = float(torch.rand(()))
    area, shape = (low + draw * (high - low) for low, high in (scale, aspect))
    area = int(side * side * area)
    height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
    return min(max(height, 1), side), min(max(width, 1), side)


def blocks(count: int, number: int, side: int, size: tuple[int, int]) -> torch.Tensor:
    """`number` blocks at random places for each of `count` pictures: patches (count, number, height · width)."""
    height, width = size
    top = torch.randint(side - height + 1, (count, number, 1, 1))
    left = torch.randint(side - width + 1, (count, number, 1, 1))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return ((top + rows) * side + left + columns).flatten(2)


def remaining(side: int, size: tuple[int, int], targets: torch.Tensor) -> torch.Tensor:
    """A block of `size` for each row of targets (N, B, T), without them: (N, P) bool."""
    context = torch.zeros(len(targets), side * side, dtype=torch.bool)
    context.scatter_(1, blocks(len(targets), 1, side, size)[:, 0], True)
    return context.scatter_(1, targets.flatten(1), False)


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 14,
    width: int = 1280,
    layers: int = 32,
    head_width: int = 80,
    predictor_width: int = 384,
    predictor_layers: int = 12,
    predictor_heads: int = 16,
    **learning: Any,
) -> tuple[IJepa, ViTImageProcessorPil]:
    """A new I-JEPA and its image processor; the defaults are ViT-H/14's. `texts` are for other families.

    Args:
        learning: further fields of `IJepaPretrainingConfig`, such as `momentum` and `total_steps`.
    """
    config = IJepaPretrainingConfig(
        **encoder_sizes(image_size, patch_size, width, layers, head_width),
        layer_norm_eps=1e-6,
        predictor_size=predictor_width,
        predictor_layers=predictor_layers,
        predictor_heads=predictor_heads,
        **declared(IJepaPretrainingConfig, learning),
    )
    return IJepa(config), image_processor(image_size)


# Public weights have names of old, which transformers translates class by class, for its own classes only.
register_checkpoint_conversion_mapping(IJepaEncoder.__name__, get_checkpoint_conversion_mapping("IJepaModel") or [])
