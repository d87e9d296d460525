"""NCE: logistic regression between pairs of the data and images with other images' captions, on CLIP's towers.

The noise distribution is the product of the marginals, p_n(x, t) = p(x) p(t), and the model is its ratio to the data:
log p̃(x, t) = log p_n(x, t) + s · cos(f(x), g(t)). p̃ is not normalised; the learned parameter c estimates −log Z.

Source: Gutmann and Hyvärinen 2010, section 2; 2012 for more than one noise sample per data sample.
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

from models.contrastive.clip import CLIP, ClipTrainingConfig, build_towers_config
from models.outputs import PretrainingOutput
from models.sizes import forwards_sizes_to


def nce_terms(data: torch.Tensor, noise: torch.Tensor, noise_ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    """−E_data[log P(C=1)] and −ν E_noise[log P(C=0)], scalars whose sum is the loss.

    P(C=1 | u) = σ(log p̃(u) + c − log(ν p_n(u))).

    Args:
        data: log p̃(u) + c − log p_n(u) of data samples u, any shape.
        noise: the same of noise samples, any shape.
        noise_ratio: ν, noise samples per data sample.

    Source: Gutmann and Hyvärinen 2012, equations 6 and 8.
    """
    threshold = math.log(noise_ratio)
    return F.softplus(threshold - data).mean(), noise_ratio * F.softplus(noise - threshold).mean()


def sample_noise_captions(pairs: int, noise_ratio: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Draw captions of `noise_ratio` other pairs for every image, without repetition: (pairs, noise_ratio) indices.

    Pairs are independent samples of the data, so another pair's caption is a sample of p(t) independent of x; so it is
    if it equals the own caption, which p(t) makes as likely as the data has it.
    """
    others = torch.rand(pairs, pairs - 1, device=device).argsort(1)[:, :noise_ratio]
    own = torch.arange(pairs, device=device)[:, None]
    return others + (others >= own)


@strict
class NCEConfig(ClipTrainingConfig):
    """CLIP's config with the noise.

    noise_ratio: ν, noise captions for each pair; a batch of N pairs uses at most N − 1.
    log_normaliser_init_value: initial c; 0 suits cosines around 0.
    """

    model_type = "nce"

    noise_ratio: int = 255
    log_normaliser_init_value: float = 0.0

    def validate_architecture(self) -> None:
        """Raises: ValueError for a `noise_ratio` below 1."""
        if self.noise_ratio < 1:
            raise ValueError(f"noise_ratio must be at least 1 caption for each pair, got {self.noise_ratio}")


class NCE(CLIP):
    """CLIP's towers with the learned log normaliser c."""

    config: NCEConfig  # type: ignore[assignment]
    config_class = NCEConfig

    def __init__(self, config: NCEConfig):
        super().__init__(config)
        self.log_normaliser = nn.Parameter(torch.tensor(config.log_normaliser_init_value))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NCE) and hasattr(module, "log_normaliser"):  # not yet set while CLIP is initialised
            init.constant_(module.log_normaliser, self.config.log_normaliser_init_value)

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        noise_indices: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Compute the NCE loss; each process draws its noise from its own part of the batch.

        Args:
            pixel_values: (N, 3, H, W), normalised, N at least 2.
            input_ids, attention_mask: (N, L), row i the caption of image i.
            noise_indices: (N, ν), rows of each image's noise captions; drawn by default.
        """
        image, text = self.embed(pixel_values, input_ids, attention_mask)  # (N, D) each
        log_ratio = self.scale * image @ text.T + self.log_normaliser  # (N, N): log p̃ + c − log p_n of every pair
        if noise_indices is None:
            noise_ratio = min(self.config.noise_ratio, len(image) - 1)
            noise_indices = sample_noise_captions(len(image), noise_ratio, image.device)
        noise = log_ratio.gather(1, noise_indices)  # (N, ν)
        data_term, noise_term = nce_terms(log_ratio.diagonal(), noise, noise_indices.shape[1])
        return PretrainingOutput(data_term + noise_term, {"data": data_term, "noise": noise_term})


AutoConfig.register("nce", NCEConfig)
AutoModel.register(NCEConfig, NCE)


@forwards_sizes_to(build_towers_config)
def build(
    texts: Iterable[str],
    *,
    noise_ratio: int = 255,
    log_normaliser: float = 0.0,
    micro_batch: int = 0,
    **sizes: Any,
) -> tuple[NCE, CLIPProcessor]:
    """Build an NCE model and its processor; `log_normaliser` is the initial c; sizes as in `build_towers_config`."""
    clip, processor = build_towers_config(texts, **sizes)
    config = NCEConfig.from_dict(
        {
            **clip.to_dict(),
            "noise_ratio": noise_ratio,
            "log_normaliser_init_value": log_normaliser,
            "micro_batch": micro_batch,
        }
    )
    return NCE(config), processor
