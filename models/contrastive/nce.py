"""NCE: is this a pair of the data, or a picture with another picture's caption? A logistic regression on CLIP's towers.

The noise is the product of the marginals, p_n(x, t) = p(x) p(t), and the model says how far the data are from it:
log p̃(x, t) = log p_n(x, t) + s · cos(f(x), g(t)). Nothing makes p̃ add up to one; c, a parameter like any other,
learns to stand where −log Z would.

Source: Gutmann and Hyvärinen 2010, section 2; 2012 for more noise than data.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, CLIPProcessor
from transformers import initialization as init

from models.contrastive.clip import CLIP, Config, towers
from models.outputs import PretrainingOutput


def nce_terms(data: torch.Tensor, noise: torch.Tensor, ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    """−E_data[log P(C=1)] and −ν E_noise[log P(C=0)], scalars whose sum is the loss.

    P(C=1 | u) = σ(log p̃(u) + c − log(ν p_n(u))).

    Args:
        data: log p̃(u) + c − log p_n(u) of samples u of the data, any shape.
        noise: the same of samples of the noise, any shape.
        ratio: ν, how many samples of noise there are for one of the data.

    Source: Gutmann and Hyvärinen 2012, equations 6 and 8.
    """
    bar = math.log(ratio)
    return F.softplus(bar - data).mean(), ratio * F.softplus(noise - bar).mean()


def noise_captions(pairs: int, ratio: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """For every picture of a batch, captions of `ratio` other pictures, each at most once: (pairs, ratio) places.

    Pairs are drawn one by one from the data, so another pair's caption is a draw from p(t) that does not know x.
    """
    others = torch.rand(pairs, pairs - 1, device=device).argsort(1)[:, :ratio]
    own = torch.arange(pairs, device=device)[:, None]
    return others + (others >= own)


@strict
class NCEConfig(Config):
    """CLIP's config, and how much noise there is.

    `noise` is ν, captions of noise for each pair; a batch has one less than its pairs, and takes those if ν is more.
    `log_normaliser_init_value` is c at the start; 0 is right for cosines around 0.
    """

    model_type = "nce"

    noise: int = 255
    log_normaliser_init_value: float = 0.0

    def validate_architecture(self) -> None:
        """Raises: ValueError where there is no noise to tell the data from."""
        if self.noise < 1:
            raise ValueError(f"noise must be at least 1 caption for each pair, got {self.noise}")


class NCE(CLIP):
    """CLIP's towers, and c."""

    config: NCEConfig  # type: ignore[assignment]
    config_class = NCEConfig

    def __init__(self, config: NCEConfig):
        super().__init__(config)
        self.log_normaliser = nn.Parameter(torch.tensor(config.log_normaliser_init_value))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NCE) and hasattr(module, "log_normaliser"):  # CLIP's weights have none
            init.constant_(module.log_normaliser, self.config.log_normaliser_init_value)

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Each process draws its noise from its own part of the batch.

        Args:
            pixel_values: (N, 3, H, W), normalised, N at least 2.
            input_ids, attention_mask: (N, L), row i the caption of picture i.
            noise: (N, ν), places of each picture's noise captions; drawn if not given.
        """
        image, text = self.embed(pixel_values, input_ids, attention_mask)
        ratio = self.scale * image @ text.T + self.log_normaliser  # (N, N): log p̃ + c − log p_n of every pair
        if noise is None:
            noise = noise_captions(len(image), min(self.config.noise, len(image) - 1), image.device)
        found, rejected = nce_terms(ratio.diagonal(), ratio.gather(1, noise), noise.shape[1])
        return PretrainingOutput(found + rejected, {"data": found, "noise": rejected})


AutoConfig.register("nce", NCEConfig)
AutoModel.register(NCEConfig, NCE)


def build(
    texts: Iterable[str],
    *,
    noise: int = 255,
    log_normaliser: float = 0.0,
    micro_batch: int = 0,
    **sizes: Any,
) -> tuple[NCE, CLIPProcessor]:
    """A new NCE and its processor; `noise` is ν, `log_normaliser` c at the start; sizes as in `clip.towers`."""
    clip, processor = towers(texts, **sizes)
    config = NCEConfig.from_dict(
        {
            **clip.to_dict(),
            "noise": noise,
            "log_normaliser_init_value": log_normaliser,
            "micro_batch": micro_batch,
        }
    )
    return NCE(config), processor
