"""I-JEPA: predict features of parts of an image from another part; a moving average of the encoder gives the targets.

The encoders are transformers' `IJepaModel`, so that public weights load and `IJepaModel` loads ours; masks, predictor
and target encoder are ours. Loss and masks follow the published code: smooth L1 on layer-normed targets.
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
from transformers import IJepaModel
from transformers import initialization as init
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.ijepa.configuration_ijepa import IJepaConfig
from transformers.models.ijepa.modeling_ijepa import IJepaEmbeddings, IJepaLayer, IJepaPreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from models.masked.mae import (
    build_image_processor,
    encoder_sizes,
    freeze_positions,
    interleaved_masks,
    loss_weighted_mean,
    sinusoidal_grid,
)
from models.outputs import PretrainingOutput
from models.sizes import forwards_sizes_to

MAX_DRAWS = 20  # of an image's target blocks, before one with too small a context is accepted


@strict
class IJepaPretrainingConfig(IJepaConfig):
    """`IJepaConfig` with the options of pretraining; the defaults are those of ViT-H/14.

    target_scale, context_scale: ranges of the share of patches in a block (context: before the targets are removed).
    target_aspect: range of height over width of a target block.
    min_context: patches of a context, at least.
    momentum: of the target encoder at the first of `total_steps` steps; it grows to 1 at the last.
    pooling: of patches to one vector: the mean, as published, or `loss_weighted_mean` by the predictor's loss.
    """

    predictor_hidden_size: int = 384
    predictor_layers: int = 12
    predictor_heads: int = 16
    target_blocks: int = 4
    target_scale: tuple[float, float] | list[float] = (0.15, 0.2)
    target_aspect: tuple[float, float] | list[float] = (0.75, 1.5)
    context_scale: tuple[float, float] | list[float] = (0.85, 1.0)
    min_context: int = 10
    momentum: float = 0.996
    total_steps: int = 187_500
    pooling: Literal["mean", "loss_weighted"] = "mean"


class IJepaEncoder(IJepaModel):
    """`IJepaModel` with fixed sinusoidal positions, and a forward pass over some patches only."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, IJepaEmbeddings):
            init.copy_(module.position_embeddings, sinusoidal_grid(module.position_embeddings))

    def encode_visible(self, pixel_values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); indices: (N, K) of visible patches; returns their states (N, K, D)."""
        states = gather_patches(self.embeddings(pixel_values), indices)
        for layer in self.layers:
            states = layer(states)
        return self.layernorm(states)


class Predictor(nn.Module):
    """A narrow transformer that predicts the features of a block from the context and the block's positions."""

    def __init__(self, config: IJepaPretrainingConfig):
        super().__init__()
        narrow = deepcopy(config)
        narrow.hidden_size, narrow.intermediate_size = config.predictor_hidden_size, 4 * config.predictor_hidden_size
        narrow.num_attention_heads = config.predictor_heads
        self.embed = nn.Linear(config.hidden_size, config.predictor_hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.predictor_hidden_size))
        patches = (config.image_size // config.patch_size) ** 2  # type: ignore[operator]
        self.positions = nn.Parameter(torch.zeros(1, patches, config.predictor_hidden_size))
        self.layers = nn.ModuleList([IJepaLayer(narrow) for _ in range(config.predictor_layers)])
        self.norm = nn.LayerNorm(config.predictor_hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.predictor_hidden_size, config.hidden_size)

    def forward(self, context: torch.Tensor, context_indices: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Predict every block by itself: no block's mask tokens attend to another's.

        Args:
            context: (N, K, D), states of the visible patches.
            context_indices: (N, K), their indices.
            targets: (N, B, T), indices of the patches of each block.

        Returns:
            (N, B, T, D).
        """
        rows, blocks, size = targets.shape
        positions = self.positions.expand(rows, -1, -1)
        visible = self.embed(context) + gather_patches(positions, context_indices)  # (N, K, W)
        masked = self.mask_token + gather_patches(positions, targets.flatten(1))  # (N, B·T, W)
        visible = visible[:, None].expand(-1, blocks, -1, -1).flatten(0, 1)  # (N·B, K, W)
        states = torch.cat([visible, masked.view(rows * blocks, size, -1)], 1)  # (N·B, K + T, W)
        for layer in self.layers:
            states = layer(states)
        return self.head(self.norm(states[:, -size:])).unflatten(0, (rows, blocks))


class IJepa(IJepaPreTrainedModel):
    """Context encoder, predictor, and target encoder `ijepa`, which gives the features and loads as `IJepaModel`."""

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
        freeze_positions(self)
        return super().train(mode)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Predictor):
            init.trunc_normal_(module.mask_token, std=self.config.initializer_range)
            init.copy_(module.positions, sinusoidal_grid(module.positions))
        elif module is self:
            init.zeros_(self.steps)
            # Both encoders start with the same weights, also where only the target encoder's are loaded.
            for context, target in zip(self.context.parameters(), self.ijepa.parameters(), strict=True):
                init.copy_(context, target)

    def forward(
        self,
        pixel_values: torch.Tensor,
        context_indices: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Compute smooth L1 between predicted features and LN(f̄(image)) on the targets' patches, f̄ the target encoder.

        In training each call first updates the target encoder with the weights of the previous step, so a call is a
        step: gradient accumulation is not supported.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            context_indices: (N, K), patches of the context.
            targets: (N, B, T), patches of the target blocks. `sample_multiblock` draws both by default.
        """
        if self.training:
            self.update_target_encoder()
        if context_indices is None or targets is None:
            drawn = sample_multiblock(len(pixel_values), self.config)
            context_indices, targets = (part.to(pixel_values.device) for part in drawn)
        with torch.no_grad():
            states = self.ijepa(pixel_values).last_hidden_state  # (N, P, D), of the whole image
            truth = gather_patches(F.layer_norm(states, states.shape[-1:]), targets.flatten(1))
            truth = truth.view(*targets.shape, -1)  # (N, B, T, D)
        context = self.context.encode_visible(pixel_values, context_indices)  # (N, K, D)
        loss = F.smooth_l1_loss(self.predictor(context, context_indices, targets), truth)
        return PretrainingOutput(loss, {"features": loss})

    @torch.no_grad()
    def update_target_encoder(self) -> None:
        """f̄ ← m · f̄ + (1 − m) · f for the previous step, numbered from 0 (section 3, "target-encoder")."""
        if step := int(self.steps):
            momentum = self.momentum(step - 1)
            for target, context in zip(self.ijepa.parameters(), self.context.parameters(), strict=True):
                target.lerp_(context, 1 - momentum)
        self.steps += 1

    def momentum(self, step: int) -> float:
        """m at a step: linear from `config.momentum` to 1."""
        start = self.config.momentum
        return start + (1 - start) * min(1.0, step / self.config.total_steps)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns the pooled states of the target encoder, (N, D)."""
        states = self.ijepa(pixel_values).last_hidden_state
        if self.config.pooling == "mean":
            return states.mean(1)
        return loss_weighted_mean(states, self.patch_loss(pixel_values, states))

    @torch.no_grad()
    def patch_loss(self, pixel_values: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Loss of each patch, predicted from the other three interleaved meshes: (N, P).

        Args:
            pixel_values: (N, 3, H, W).
            states: (N, P, D) of the target encoder.
        """
        rows, _, width = states.shape
        truth = F.layer_norm(states, (width,))
        meshes = [mesh.to(states.device) for mesh in interleaved_masks(math.isqrt(states.shape[1]))]
        losses = torch.zeros_like(states[..., 0])
        for i, mesh in enumerate(meshes):
            indices = torch.cat(meshes[:i] + meshes[i + 1 :]).expand(rows, -1)
            context = self.context.encode_visible(pixel_values, indices)
            predicted = self.predictor(context, indices, mesh.expand(rows, 1, -1))[:, 0]
            losses[:, mesh] = F.smooth_l1_loss(predicted, truth[:, mesh], reduction="none").mean(2)
        return losses


def gather_patches(states: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """states: (N, P, D); indices: (N, K); returns (N, K, D)."""
    return states.gather(1, indices[..., None].expand(-1, -1, states.shape[-1]))


def sample_multiblock(count: int, config: IJepaPretrainingConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw target blocks, and a large context block without their patches.

    Sizes are drawn once for all images, positions for each image. Contexts are cut at random to the size of the
    smallest one, so that they form one tensor. Targets that leave fewer than `config.min_context` patches are drawn
    again, at most `MAX_DRAWS` times. Context and targets are disjoint.

    Returns:
        Context (count, K) and targets (count, B, T), patch indices row by row.

    Raises:
        ValueError: the targets cover a whole context.

    Source: section 3 and appendix A.1; the published `multiblock.py` for what the paper leaves open.
    """
    side = config.image_size // config.patch_size  # type: ignore[operator]
    target = sample_block_size(side, config.target_scale, config.target_aspect)
    large = sample_block_size(side, config.context_scale, (1.0, 1.0))
    targets = sample_blocks(count, config.target_blocks, side, target)  # (N, B, T)
    context = sample_context(side, large, targets)  # (N, P) bool
    for _ in range(MAX_DRAWS):
        short = (context.sum(1) < config.min_context).nonzero()[:, 0]
        if not len(short):
            break
        targets[short] = sample_blocks(len(short), config.target_blocks, side, target)
        context[short] = sample_context(side, large, targets[short])
    keep = int(context.sum(1).min())
    if not keep:
        raise ValueError(f"targets cover a whole context of {side}×{side} patches; make target_scale smaller")
    order = (torch.rand(context.shape) + ~context).argsort(1)  # the context's patches first, in random order
    return order[:, :keep], targets


def sample_block_size(side: int, scale: Any, aspect: Any) -> tuple[int, int]:
    """Height and width in patches; one draw sets both scale and aspect."""
    draw = float(torch.rand(()))
    area, ratio = (low + draw * (high - low) for low, high in (scale, aspect))
    area = int(side * side * area)
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(max(height, 1), side), min(max(width, 1), side)


def sample_blocks(count: int, number: int, side: int, size: tuple[int, int]) -> torch.Tensor:
    """Draw `number` blocks for each of `count` images: patch indices (count, number, height · width)."""
    height, width = size
    top = torch.randint(side - height + 1, (count, number, 1, 1))
    left = torch.randint(side - width + 1, (count, number, 1, 1))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return ((top + rows) * side + left + columns).flatten(2)


def sample_context(side: int, size: tuple[int, int], targets: torch.Tensor) -> torch.Tensor:
    """Draw a block of `size` for each row of targets (N, B, T), without the targets' patches: (N, P) bool."""
    context = torch.zeros(len(targets), side * side, dtype=torch.bool)
    context.scatter_(1, sample_blocks(len(targets), 1, side, size)[:, 0], True)
    return context.scatter_(1, targets.flatten(1), False)


@forwards_sizes_to(IJepaPretrainingConfig)
def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 14,
    hidden_size: int = 1280,
    layers: int = 32,
    head_dim: int = 80,
    **options: Any,
) -> tuple[IJepa, ViTImageProcessorPil]:
    """Build an I-JEPA and its image processor; the defaults are those of ViT-H/14. `texts` is not used.

    Args:
        options: further fields of `IJepaPretrainingConfig`, such as `predictor_layers` and `momentum`.
    """
    sizes = encoder_sizes(image_size, patch_size, hidden_size, layers, head_dim)
    config = IJepaPretrainingConfig(**{**sizes, "layer_norm_eps": 1e-6, **options})
    return IJepa(config), build_image_processor(image_size)


# Public weights have older parameter names. transformers maps them for its own classes only, by class name.
register_checkpoint_conversion_mapping(IJepaEncoder.__name__, get_checkpoint_conversion_mapping("IJepaModel") or [])
