"""An energy for every picture and caption: low for the data, and higher where the model itself goes looking.

p(x | t) = exp(−E(x, t)) / Z(t), with E(x, t) = −s · cos(f(x), g(t)) on CLIP's towers. Z(t) is a sum over all pictures
there could be; its gradient is an expectation under the model, so that samples do instead of the sum:

    ∇ −log p(x⁺ | t) = ∇E(x⁺, t) − E_{x⁻ ~ p(x | t)}[∇E(x⁻, t)]

A sample starts at a picture of the batch, drawn with p ∝ exp(−E), and goes on by Langevin's steps in pixel space.
Without those steps this is InfoNCE, by samples: its softmax is the distribution that the draw is from.

Source: LeCun et al. 2006, section 2; Du and Mordatch 2019, section 3 and algorithm 1.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel, CLIPProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from models.contrastive.clip import CLIP, Config, towers
from models.outputs import PretrainingOutput


def energy_terms(plus: torch.Tensor, minus: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E(x⁺) − E(x⁻), whose gradient is that of −log p(x⁺), and E(x⁺)² + E(x⁻)², which keeps both near 0; scalars.

    The first is no loss to look at: its value says nothing of Z, and 0 is where model and data agree.

    Args:
        plus: (N,), energies of data.
        minus: any shape, energies of the model's samples, which are held fixed.

    Source: Du and Mordatch 2019, algorithm 1.
    """
    return plus.mean() - minus.mean(), plus.square().mean() + minus.square().mean()


def gibbs(energies: torch.Tensor, draws: int) -> torch.Tensor:
    """`draws` rows for every column of energies (N, M), each drawn with p ∝ exp(−E): (draws, M)."""
    return torch.multinomial((-energies.detach().float()).softmax(0).T, draws, replacement=True).T


def langevin(
    energy: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    steps: int,
    step_size: float,
    noise: float = 1.0,
    low: float | torch.Tensor = -math.inf,
    high: float | torch.Tensor = math.inf,
) -> torch.Tensor:
    """x ← x − (ε²/2) ∇E(x) + ε · noise, a number of times; towards samples of p(x) ∝ exp(−E(x)) as ε goes to 0.

    Args:
        energy: (N, ...) to (N,).
        x: (N, ...), where the chains start.
        step_size: ε.
        noise: the noise's deviation; below 1, p is sharpened to p ∝ exp(−E / noise²).
        low, high: what x is cut to after every step; numbers, or tensors that fit x.

    Source: Welling and Teh 2011, equation 2, with the whole gradient.
    """
    low, high = torch.as_tensor(low).to(x), torch.as_tensor(high).to(x)
    with torch.enable_grad():  # of x alone: evaluation has it off, and the weights get none here
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(energy(x).sum(), x)
            x = x - step_size**2 / 2 * slope + step_size * noise * torch.randn_like(x)
            x = torch.maximum(torch.minimum(x, high), low)
    return x.detach()


@strict
class EnergyConfig(Config):
    """CLIP's config, and how samples are found.

    Samples start at `draws` pictures of the batch for every caption. `langevin_steps` of size `langevin_step_size` (in
    deviations of a pixel, as the model sees it) with `langevin_noise` times its noise lead on from the first of them,
    for `langevin_share` of the captions, which have that sample alone; the others' samples stay where they start, and
    cost next to nothing. `energy_penalty` is α, the weight of the squares.
    """

    model_type = "energy"

    draws: int = 1
    langevin_steps: int = 3
    langevin_step_size: float = 0.1
    langevin_noise: float = 1.0
    langevin_share: float = 1.0
    energy_penalty: float = 1e-3

    def validate_architecture(self) -> None:
        """Raises: ValueError for a share of the batch that is none, no draw, or fewer steps than none."""
        if not 0 <= self.langevin_share <= 1:
            raise ValueError(f"langevin_share must be from 0 to 1, got {self.langevin_share}")
        if self.draws < 1 or self.langevin_steps < 0:
            raise ValueError(
                f"draws must be at least 1 and langevin_steps 0, got {self.draws} and {self.langevin_steps}"
            )


class EnergyModel(CLIP):
    """CLIP's towers as an energy."""

    config: EnergyConfig  # type: ignore[assignment]
    config_class = EnergyConfig

    def energy(self, pixel_values: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """E(x, t) = −s · cos(f(x), g(t)), (N,), of pixel_values (N, 3, H, W) and unit vectors of text (N, D)."""
        return -self.scale * (self._embed_images(pixel_values) * text).sum(-1)

    def sample(self, pixel_values: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Langevin's steps from pictures (N, 3, H, W) towards samples of p(x | t), text (N, D): (N, 3, H, W)."""
        config = self.config
        mean, deviation = (pixel_values.new_tensor(v)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        text = text.detach()
        return langevin(
            lambda x: self.energy(x, text),
            pixel_values,
            steps=config.langevin_steps,
            step_size=config.langevin_step_size,
            noise=config.langevin_noise,
            low=(0 - mean) / deviation,  # black and white, as the model sees them
            high=(1 - mean) / deviation,
        )

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Each process looks for samples in its own part of the batch.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            input_ids, attention_mask: (N, L), row i the caption of picture i.
            start: (draws, N), the pictures where each caption's samples start; drawn if not given.
        """
        image, text = self.embed(pixel_values, input_ids, attention_mask)
        energies = -self.scale * image @ text.T  # (N, N), pictures by captions
        start = gibbs(energies, self.config.draws) if start is None else start
        minus = energies.gather(0, start)  # (draws, N): E(x_start(j), t_j)
        chains = round(self.config.langevin_share * len(text)) if self.config.langevin_steps else 0
        if chains:  # the first captions of the batch, whose order is random
            samples = self.sample(pixel_values[start[0, :chains]], text[:chains])
            ends = self.energy(samples, text[:chains]).expand(len(minus), -1)  # (draws, chains), all the same
            minus = torch.cat([ends, minus[:, chains:]], 1)
        contrast, size = energy_terms(energies.diagonal(), minus)
        return PretrainingOutput(contrast + self.config.energy_penalty * size, {"contrast": contrast, "size": size})


AutoConfig.register("energy", EnergyConfig)
AutoModel.register(EnergyConfig, EnergyModel)


def build(
    texts: Iterable[str],
    *,
    draws: int = 1,
    langevin_steps: int = 3,
    langevin_step_size: float = 0.1,
    langevin_noise: float = 1.0,
    langevin_share: float = 1.0,
    energy_penalty: float = 1e-3,
    micro_batch: int = 0,
    **sizes: Any,
) -> tuple[EnergyModel, CLIPProcessor]:
    """A new energy model and its processor; options as in `EnergyConfig`, sizes as in `clip.towers`."""
    clip, processor = towers(texts, **sizes)
    config = EnergyConfig.from_dict(
        {
            **clip.to_dict(),
            "draws": draws,
            "langevin_steps": langevin_steps,
            "langevin_step_size": langevin_step_size,
            "langevin_noise": langevin_noise,
            "langevin_share": langevin_share,
            "energy_penalty": energy_penalty,
            "micro_batch": micro_batch,
        }
    )
    return EnergyModel(config), processor
