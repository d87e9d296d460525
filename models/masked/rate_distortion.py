"""Rate–distortion: a code of the visible patches with as little information as possible, and an image decoded from it.

Masking as compression: among all codes Z of a masked image f(X), find argmin I(f(X); Z) + β H(X | Z). Neither term can
be computed, but a prior q(z) and a decoder q(x | z) bound their sum from above by −E[log q(z) + β log q(x | z)]. An MAE
is the case without a cost of the code. For finite X and Z, `objective` and `variational_bound` compute both sides.
Source: Bordes et al. 2024, section 2.3.3; Dubois et al. 2021.
"""

import math
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, ViTMAEConfig, ViTMAEForPreTraining
from transformers import initialization as init
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder, ViTMAEPreTrainedModel

from models.masked.mae import (
    MAEEncoder,
    build_image_processor,
    check_mask_count,
    decoder_sizes,
    encoder_sizes,
    freeze_positions,
    init_weights,
    loss_weighted_mean,
)
from models.outputs import PretrainingOutput

INITIAL_STD = 0.5  # of a pixel around its prediction, before training


@strict
class RateDistortionConfig(ViTMAEConfig):
    """An MAE's sizes, the dimension of a token's code, and β, the weight of a nat of distortion."""

    model_type = "rate-distortion"

    code_size: int = 64
    beta: float = 0.1


class RateDistortion(ViTMAEPreTrainedModel):
    """A Gaussian bottleneck between the encoder and the decoder of an MAE.

    p(z | f(x)): every visible token and CLS has its own code, N(μ, diag σ²). q(z): one learned Gaussian for all codes.
    q(x | z): a Gaussian around the decoded pixels, with one learned deviation for visible and one for masked patches.
    """

    config: RateDistortionConfig
    patchify = ViTMAEForPreTraining.patchify
    unpatchify = ViTMAEForPreTraining.unpatchify

    def __init__(self, config: RateDistortionConfig):
        super().__init__(config)
        self.vit = MAEEncoder(config)
        self.bottleneck = nn.Linear(config.hidden_size, 2 * config.code_size)
        self.prior_mean = nn.Parameter(torch.zeros(config.code_size))
        self.prior_log_std = nn.Parameter(torch.zeros(config.code_size))
        decoder_config = deepcopy(config)
        decoder_config.hidden_size = config.code_size
        self.decoder = ViTMAEDecoder(decoder_config, self.vit.embeddings.patch_embeddings.num_patches)
        self.pixel_log_std = nn.Parameter(torch.zeros(2))  # of visible patches, of masked ones
        self.post_init()

    def train(self, mode: bool = True) -> "RateDistortion":
        freeze_positions(self)
        return super().train(mode)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_weights(module)
        if module is self:
            init.zeros_(self.prior_mean)
            init.zeros_(self.prior_log_std)
            init.constant_(self.pixel_log_std, math.log(INITIAL_STD))

    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        code_noise: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Compute rate + β · distortion, in nats per image.

        rate = KL(p(z | f(x)) ‖ q(z)), whose mean bounds I(f(X); Z). It is −E log q(z) minus the entropy of the code,
        which is 0 for a deterministic code and matters for a Gaussian one.
        distortion = −E log q(x | z), of a density, so it may be negative.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            noise: (N, P); the int(P · (1 − mask_ratio)) patches with the lowest noise are visible. Drawn by default.
            code_noise: (N, 1 + visible, code_size), normal; the code is μ + σ · code_noise. Drawn by default.
        """
        mean, log_std, patch_mask, order = self.encode(pixel_values, noise)
        code_noise = torch.randn_like(mean) if code_noise is None else code_noise
        decoded = self.decoder(mean + log_std.exp() * code_noise, order).logits  # (N, P, p² · 3)
        rate = self.rate(mean, log_std).sum(1).mean()
        pixel_log_std = self.pixel_log_std[patch_mask.long()][..., None]  # (N, P, 1)
        nats = gaussian_nats(self.patchify(pixel_values), decoded, pixel_log_std)  # (N, P, p² · 3)
        distortion = nats.sum((1, 2)).mean()
        return PretrainingOutput(rate + self.config.beta * distortion, {"rate": rate, "distortion": distortion})

    def encode(
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode the visible patches.

        Returns:
            Mean and log deviation of the codes, (N, 1 + visible, code_size) each; the mask, (N, P) bool, True where a
            patch is masked; and the order that restores the patches, (N, P).
        """
        outputs: Any = self.vit(pixel_values, noise=noise)
        mean, log_std = self.bottleneck(outputs.last_hidden_state).chunk(2, -1)
        return mean, log_std, outputs.mask.bool(), outputs.ids_restore

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns the pooled codes of the unmasked patches, (N, code_size).

        The patches' mean codes are weighted by their squared rates: patches with a high rate carry the information.
        """
        mean, log_std = self.bottleneck(self.vit.forward_unmasked(pixel_values)[:, 1:]).chunk(2, -1)
        return loss_weighted_mean(mean, self.rate(mean, log_std))

    def rate(self, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
        """KL(p(z | f(x)) ‖ q(z)) of each token in nats: (N, tokens)."""
        return gaussian_kl(mean, log_std, self.prior_mean, self.prior_log_std).sum(2)

    def reconstruct(self, pixel_values: torch.Tensor, patch_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        """Replace the masked patches of images by patches decoded from the mean code.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            patch_mask: (N, P) bool, row by row of the image.

        Returns:
            (N, 3, H, W), normalised.

        Raises:
            ValueError: the number of masked patches does not fit `mask_ratio`.
        """
        check_mask_count(patch_mask, self.config.mask_ratio)
        encoded = self.encode(pixel_values, patch_mask.float())
        mean, order = encoded[0], encoded[-1]
        decoded: Any = self.decoder(mean, order).logits  # (N, P, p² · 3)
        return self.unpatchify(torch.where(patch_mask[..., None], decoded, self.patchify(pixel_values)))


def gaussian_kl(
    mean: torch.Tensor, log_std: torch.Tensor, prior_mean: torch.Tensor, prior_log_std: torch.Tensor
) -> torch.Tensor:
    """KL(N(μ, σ²) ‖ N(m, s²)) = log s/σ + (σ² + (μ − m)²) / 2s² − ½, elementwise, in nats."""
    second_moment = (2 * log_std).exp() + (mean - prior_mean).square()
    return prior_log_std - log_std + second_moment / (2 * (2 * prior_log_std).exp()) - 0.5


def gaussian_nats(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """−log N(x; mean, σ²) = ½ ((x − mean)/σ)² + log σ + ½ log 2π, elementwise."""
    return 0.5 * ((x - mean) / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi)


def objective(data: torch.Tensor, view: torch.Tensor, encoder: torch.Tensor, beta: float) -> torch.Tensor:
    """I(f(X); Z) + β H(X | Z) for finite X and Z, in nats.

    Args:
        data: p(x), (X,).
        view: f(x), an index for each x, (X,).
        encoder: p(z | f), (F, Z).
    """
    joint = data[:, None] * encoder[view]  # p(x, z), (X, Z)
    code = joint.sum(0)  # p(z), (Z,)
    information = entropy(code) - (data * entropy(encoder[view])).sum()
    return information + beta * (entropy(joint.flatten()) - entropy(code))


def variational_bound(
    data: torch.Tensor,
    view: torch.Tensor,
    encoder: torch.Tensor,
    prior: torch.Tensor,
    decoder: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """−Σ p(x) p(z | f(x)) (log q(z) + β log q(x | z)), at least `objective` for every q.

    The difference is H(Z | f(X)) + KL(p(z) ‖ q(z)) + β E KL(p(x | z) ‖ q(x | z)).

    Args:
        data, view, encoder: as in `objective`.
        prior: q(z), (Z,).
        decoder: q(x | z), (Z, X).
    """
    joint = data[:, None] * encoder[view]
    return -torch.xlogy(joint, prior).sum() - beta * torch.xlogy(joint, decoder.T).sum()


def entropy(p: torch.Tensor) -> torch.Tensor:
    """−Σ p log p over the last axis, in nats; 0 log 0 is 0."""
    return -torch.xlogy(p, p).sum(-1)


def build(
    texts: Iterable[str],
    *,
    image_size: int = 224,
    patch_size: int = 16,
    hidden_size: int = 768,
    layers: int = 12,
    head_dim: int = 64,
    decoder_hidden_size: int = 512,
    decoder_layers: int = 8,
    decoder_head_dim: int = 32,
    mask_ratio: float = 0.75,
    code_size: int = 64,
    beta: float = 0.1,
) -> tuple[RateDistortion, ViTImageProcessorPil]:
    """Build a model and its image processor; the defaults are an MAE's with ViT-B. `texts` is not used."""
    config = RateDistortionConfig(
        **encoder_sizes(image_size, patch_size, hidden_size, layers, head_dim),
        **decoder_sizes(decoder_hidden_size, decoder_layers, decoder_head_dim),
        mask_ratio=mask_ratio,
        code_size=code_size,
        beta=beta,
    )
    return RateDistortion(config), build_image_processor(image_size)


AutoConfig.register("rate-distortion", RateDistortionConfig)
AutoModel.register(RateDistortionConfig, RateDistortion)
