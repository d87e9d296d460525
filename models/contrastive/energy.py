"""An energy-based model: the energy of an image and a caption is low for the data and high for the model's samples.

p(x | t) = exp(−E(x, t)) / Z(t), with E(x, t) = −s · cos(f(x), g(t)) on CLIP's towers. Z(t) sums over all possible
images; its gradient is an expectation under the model, which samples estimate:

    ∇ −log p(x⁺ | t) = ∇E(x⁺, t) − E_{x⁻ ~ p(x | t)}[∇E(x⁻, t)]

A sample starts at an image of the batch, drawn with p ∝ exp(−E), and continues with Langevin steps in pixel space.
Without Langevin steps this is a Monte Carlo estimate of InfoNCE, whose softmax is the distribution of the draw.

Source: LeCun et al. 2006, section 2; Du and Mordatch 2019, section 3 and algorithm 1.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel, CLIPProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from models.contrastive.clip import CLIP, ClipTrainingConfig, build_towers_config
from models.outputs import PretrainingOutput
from models.sizes import forwards_sizes_to


def energy_terms(positive: torch.Tensor, negative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E(x⁺) − E(x⁻), whose gradient is that of −log p(x⁺), and E(x⁺)² + E(x⁻)², which keeps both near 0; scalars.

    The value of the first term does not measure fit: it contains no Z, and is 0 where model and data agree.

    Args:
        positive: (N,), energies of the data.
        negative: any shape, energies of the model's samples, which carry no gradient of their own.

    Source: Du and Mordatch 2019, algorithm 1.
    """
    return positive.mean() - negative.mean(), positive.square().mean() + negative.square().mean()


def sample_negatives(energies: torch.Tensor, num_draws: int) -> torch.Tensor:
    """Draw `num_draws` rows for every column of energies (N, M) with p ∝ exp(−E): (num_draws, M) row indices."""
    return torch.multinomial((-energies.detach().float()).softmax(0).T, num_draws, replacement=True).T


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
    """Iterate x ← x − (ε²/2) ∇E(x) + ε · noise, which samples p(x) ∝ exp(−E(x)) as ε goes to 0.

    Args:
        energy: (N, ...) to (N,).
        x: (N, ...), the start of the chains.
        step_size: ε.
        noise: standard deviation of the noise; below 1 the chains sample the sharper p ∝ exp(−E / noise²).
        low, high: bounds to which x is clipped after every step; numbers, or tensors that broadcast to x.

    Source: Welling and Teh 2011, equation 2, with the full gradient.
    """
    low, high = torch.as_tensor(low).to(x), torch.as_tensor(high).to(x)
    with torch.enable_grad():  # evaluation disables gradients; only x needs one here, the weights do not
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(energy(x).sum(), x)
            x = x - step_size**2 / 2 * gradient + step_size * noise * torch.randn_like(x)
            x = torch.maximum(torch.minimum(x, high), low)
    return x.detach()


@strict
class EnergyConfig(ClipTrainingConfig):
    """CLIP's config with the options of the sampler.

    num_draws: images of the batch at which samples start, for every caption.
    langevin_steps, langevin_step_size, langevin_noise: steps from the first of these images. The step size is in
        standard deviations of a pixel, as in the model's input; the noise is relative to Langevin's.
    langevin_share: share of the captions with Langevin steps. These captions use that one sample; the samples of the
        others remain at the images where they start, which costs almost nothing.
    energy_penalty: α, the weight of the squared energies.
    """

    model_type = "energy"

    num_draws: int = 1
    langevin_steps: int = 3
    langevin_step_size: float = 0.1
    langevin_noise: float = 1.0
    langevin_share: float = 1.0
    energy_penalty: float = 1e-3

    def validate_architecture(self) -> None:
        """Raises: ValueError for a share outside 0..1, less than one draw, or a negative number of steps."""
        if not 0 <= self.langevin_share <= 1:
            raise ValueError(f"langevin_share must be from 0 to 1, got {self.langevin_share}")
        if self.num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {self.num_draws}")
        if self.langevin_steps < 0:
            raise ValueError(f"langevin_steps must be at least 0, got {self.langevin_steps}")


class EnergyModel(CLIP):
    """CLIP's towers as an energy."""

    config: EnergyConfig  # type: ignore[assignment]
    config_class = EnergyConfig

    def energy(self, pixel_values: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """E(x, t) = −s · cos(f(x), g(t)), (N,), of pixel_values (N, 3, H, W) and unit text vectors (N, D)."""
        return -self.scale * (self._embed_images(pixel_values) * text).sum(-1)

    def sample(self, pixel_values: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Take Langevin steps from images (N, 3, H, W) towards samples of p(x | t), text (N, D): (N, 3, H, W)."""
        config = self.config
        mean, std = (pixel_values.new_tensor(v)[:, None, None] for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        text = text.detach()
        return langevin(
            lambda x: self.energy(x, text),
            pixel_values,
            steps=config.langevin_steps,
            step_size=config.langevin_step_size,
            noise=config.langevin_noise,
            low=(0 - mean) / std,  # black and white after normalisation
            high=(1 - mean) / std,
        )

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        **_: Any,
    ) -> PretrainingOutput:
        """Compute the contrastive divergence; each process draws samples from its own part of the batch.

        Args:
            pixel_values: (N, 3, H, W), normalised.
            input_ids, attention_mask: (N, L), row i the caption of image i.
            start: (num_draws, N), images at which each caption's samples start; drawn by default.
        """
        image, text = self.embed(pixel_values, input_ids, attention_mask)  # (N, D) each
        energies = -self.scale * image @ text.T  # (N, N), images by captions
        start = sample_negatives(energies, self.config.num_draws) if start is None else start
        negative = energies.gather(0, start)  # (num_draws, N): E(x_start(j), t_j)
        chains = round(self.config.langevin_share * len(text)) if self.config.langevin_steps else 0
        if chains:  # the first captions of the batch, whose order is random
            samples = self.sample(pixel_values[start[0, :chains]], text[:chains])
            ends = self.energy(samples, text[:chains]).expand(len(negative), -1)  # (num_draws, chains), rows equal
            negative = torch.cat([ends, negative[:, chains:]], 1)
        contrast, size = energy_terms(energies.diagonal(), negative)
        return PretrainingOutput(contrast + self.config.energy_penalty * size, {"contrast": contrast, "size": size})


AutoConfig.register("energy", EnergyConfig)
AutoModel.register(EnergyConfig, EnergyModel)


@forwards_sizes_to(build_towers_config)
def build(
    texts: Iterable[str],
    *,
    num_draws: int = 1,
    langevin_steps: int = 3,
    langevin_step_size: float = 0.1,
    langevin_noise: float = 1.0,
    langevin_share: float = 1.0,
    energy_penalty: float = 1e-3,
    micro_batch: int = 0,
    **sizes: Any,
) -> tuple[EnergyModel, CLIPProcessor]:
    """Build an energy model and its processor; options as in `EnergyConfig`, sizes as in `build_towers_config`."""
    clip, processor = build_towers_config(texts, **sizes)
    config = EnergyConfig.from_dict(
        {
            **clip.to_dict(),
            "num_draws": num_draws,
            "langevin_steps": langevin_steps,
            "langevin_step_size": langevin_step_size,
            "langevin_noise": langevin_noise,
            "langevin_share": langevin_share,
            "energy_penalty": energy_penalty,
            "micro_batch": micro_batch,
        }
    )
    return EnergyModel(config), processor
