"""Rate and distortion: a code of the visible patches that says as little as it can, and a picture painted from it.

Masking as compression: among all codes Z of a masked picture f(X), find argmin I(f(X); Z) + β H(X | Z). Neither term is
at hand, but a prior q(z) and a decoder q(x | z) bound their sum from above, by −E[log q(z) + β log q(x | z)]. An MAE is
the case of a code that costs nothing. For finite X and Z, both sides stand at the end of this file, written out.
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
    check_hidden,
    decoder_sizes,
    encoder_sizes,
    first_weights,
    fore,
    freeze_places,
    image_processor,
)
from models.outputs import PretrainingOutput

FIRST_DEVIATION = 0.5  # of a pixel from what is painted, before anything is learned


@strict
class RateDistortionConfig(ViTMAEConfig):
    """An MAE's sizes, numbers in a token's code, and β, the price of a nat of distortion in nats of rate."""

    model_type = "rate-distortion"

    code_size: int = 64
    beta: float = 0.1


class RateDistortion(ViTMAEPreTrainedModel):
    """A vision transformer whose tokens pass a Gaussian bottleneck on the way from MAE's encoder to its decoder.

    p(z | f(x)): every visible token and CLS has a code of its own, N(μ, diag σ²). q(z): one learned Gaussian for all of
    them. q(x | z): a Gaussian around the painted pixels, with one learned deviation for patches that were seen and one
    for those that were hidden.
    """

    config: RateDistortionConfig
    patchify = ViTMAEForPreTraining.patchify
    unpatchify = ViTMAEForPreTraining.unpatchify

    def __init__(self, config: RateDistortionConfig):
        super().__init__(config)
        self.vit = MAEEncoder(config)
        self.code = nn.Linear(config.hidden_size, 2 * config.code_size)
        self.prior_mean = nn.Parameter(torch.zeros(config.code_size))
        self.prior_log_deviation = nn.Parameter(torch.zeros(config.code_size))
        narrow = deepcopy(config)
        narrow.hidden_size = config.code_size
        self.decoder = ViTMAEDecoder(narrow, self.vit.embeddings.patch_embeddings.num_patches)
        self.log_deviation = nn.Parameter(torch.zeros(2))  # of seen patches, of hidden ones
        self.post_init()

    def train(self, mode: bool = True) -> "RateDistortion":
        freeze_places(self)
        return super().train(mode)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        first_weights(module)
        if module is self:
            init.zeros_(self.prior_mean)
            init.zeros_(self.prior_log_deviation)
            init.constant_(self.log_deviation, math.log(FIRST_DEVIATION))

    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        draw: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Rate + β · distortion, in nats a picture.

        rate = KL(p(z | f(x)) ‖ q(z)), whose mean bounds I(f(X); Z). It is −E log q(z) less the code's own entropy,
        which is 0 for a code that is certain, and cannot be left out for a Gaussian one.
        distortion = −E log q(x | z), a density's, so it may fall below 0.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            noise: (N, P); the int(P · (1 − mask_ratio)) lowest of a row are seen. Drawn where not given.
            draw: (N, 1 + seen, code_size), normal; the code is μ + σ · draw. Drawn where not given.
        """
        mean, log_deviation, hidden, order = self.encode(pixel_values, noise)
        draw = torch.randn_like(mean) if draw is None else draw
        painted = self.decoder(mean + log_deviation.exp() * draw, order).logits  # (N, P, p² · 3)
        rate = self.rate(mean, log_deviation).sum(1).mean()
        deviation = self.log_deviation[hidden.long()][..., None]  # (N, P, 1)
        nats = gaussian_nats(self.patchify(pixel_values), painted, deviation)
        distortion = nats.sum((1, 2)).mean()
        return PretrainingOutput(rate + self.config.beta * distortion, {"rate": rate, "distortion": distortion})

    def encode(
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes (N, 1 + seen, code_size) as mean and log deviation, hidden (N, P) bool, and where each token goes."""
        seen: Any = self.vit(pixel_values, noise=noise)
        mean, log_deviation = self.code(seen.last_hidden_state).chunk(2, -1)
        return mean, log_deviation, seen.mask.bool(), seen.ids_restore

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns one code of a picture with nothing hidden, (N, code_size).

        The patches' mean codes, those with many nats at the fore: what they tell was not known before.
        """
        mean, log_deviation = self.code(self.vit.whole(pixel_values)[:, 1:]).chunk(2, -1)
        return fore(mean, self.rate(mean, log_deviation))

    def rate(self, mean: torch.Tensor, log_deviation: torch.Tensor) -> torch.Tensor:
        """KL(p(z | f(x)) ‖ q(z)) of each token in nats: (N, tokens)."""
        return gaussian_kl(mean, log_deviation, self.prior_mean, self.prior_log_deviation).sum(2)

    def reconstruct(self, pixel_values: torch.Tensor, hidden: torch.Tensor, **texts: Any) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); hidden: (N, P) bool; returns the pictures with hidden patches from the mean code.

        Raises:
            ValueError: another number of patches is hidden than the model knows.
        """
        check_hidden(hidden, self.config.mask_ratio)
        mean, *_, order = self.encode(pixel_values, hidden.float())
        painted: Any = self.decoder(mean, order).logits  # (N, P, p² · 3)
        return self.unpatchify(torch.where(hidden[..., None], painted, self.patchify(pixel_values)))


def gaussian_kl(
    mean: torch.Tensor, log_deviation: torch.Tensor, prior_mean: torch.Tensor, prior_log_deviation: torch.Tensor
) -> torch.Tensor:
    """KL(N(μ, σ²) ‖ N(m, s²)) = log s/σ + (σ² + (μ − m)²) / 2s² − ½, number by number, in nats."""
    spread = (2 * log_deviation).exp() + (mean - prior_mean).square()
    return prior_log_deviation - log_deviation + spread / (2 * (2 * prior_log_deviation).exp()) - 0.5


def gaussian_nats(x: torch.Tensor, mean: torch.Tensor, log_deviation: torch.Tensor) -> torch.Tensor:
    """−log N(x; mean, σ²) = ½ ((x − mean)/σ)² + log σ + ½ log 2π, number by number."""
    return 0.5 * ((x - mean) / log_deviation.exp()).square() + log_deviation + 0.5 * math.log(2 * math.pi)


def objective(data: torch.Tensor, view: torch.Tensor, encoder: torch.Tensor, beta: float) -> torch.Tensor:
    """I(f(X); Z) + β H(X | Z) for finite X and Z, in nats.

    Args:
        data: p(x), (X,).
        view: f(x), a number for each x, (X,).
        encoder: p(z | f), (F, Z).
    """
    joint = data[:, None] * encoder[view]  # p(x, z)
    code = joint.sum(0)  # p(z)
    information = entropy(code) - (data * entropy(encoder[view])).sum()
    return information + beta * (entropy(joint.flatten()) - entropy(code))


def bound(
    data: torch.Tensor,
    view: torch.Tensor,
    encoder: torch.Tensor,
    prior: torch.Tensor,
    decoder: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """−Σ p(x) p(z | f(x)) (log q(z) + β log q(x | z)), at least `objective` whatever q.

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
    width: int = 768,
    layers: int = 12,
    head_width: int = 64,
    decoder_width: int = 512,
    decoder_layers: int = 8,
    decoder_head_width: int = 32,
    mask_ratio: float = 0.75,
    code_size: int = 64,
    beta: float = 0.1,
) -> tuple[RateDistortion, ViTImageProcessorPil]:
    """A new model and its image processor; the defaults are an MAE's with ViT-B. `texts` are for other families."""
    config = RateDistortionConfig(
        **encoder_sizes(image_size, patch_size, width, layers, head_width),
        **decoder_sizes(decoder_width, decoder_layers, decoder_head_width),
        mask_ratio=mask_ratio,
        code_size=code_size,
        beta=beta,
    )
    return RateDistortion(config), image_processor(image_size)


AutoConfig.register("rate-distortion", RateDistortionConfig)
AutoModel.register(RateDistortionConfig, RateDistortion)
