"""Pictures that change a little each time they are seen, a whole batch of bytes at once.

What becomes of a picture is drawn by torch's generator, so that a seed gives the same pictures.
"""

import math

import torch
from torch.nn import functional as F

from vlmflow.training.pretraining.config import AugmentConfig

GREY = (0.299, 0.587, 0.114)  # ITU-R 601: how bright red, green and blue look
YIQ = (GREY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # brightness, and two axes of colour
BLUR = (0.1 / 224, 2.0 / 224)  # deviation of the blur, as a share of the picture's width


def changed(pictures: torch.Tensor, how: AugmentConfig) -> torch.Tensor:
    """pictures: (N, 3, H, W) uint8; returns the same shape and type, every row changed in its own way."""
    x = cropped(pictures.float(), how.area, how.aspect)
    if how.flip:
        x = torch.where(_chance(x, how.flip), x.flip(-1), x)
    if how.jitter:
        x = torch.where(_chance(x, how.jitter), jittered(x, how), x)
    if how.grey:
        x = torch.where(_chance(x, how.grey), brightness(x), x)
    if how.blur:
        x = torch.where(_chance(x, how.blur), blurred(x), x)
    return x.round().clamp(0, 255).to(torch.uint8)


def cropped(x: torch.Tensor, area: tuple[float, ...], aspect: float) -> torch.Tensor:
    """A random rectangle of each picture, stretched to the picture's size; (N, C, H, W), float.

    Its area is uniform and its shape log-uniform; a side that is too long for the picture is cut.

    Source: Szegedy et al. 2015, section 6.
    """
    share = torch.empty(len(x)).uniform_(*area)
    shape = torch.exp(torch.empty(len(x)).uniform_(-1, 1) * math.log(aspect))
    size = torch.stack([(share * shape).sqrt(), (share / shape).sqrt()], dim=1).clamp(max=1)  # (N, 2): width, height
    centre = (2 * torch.rand(len(x), 2) - 1) * (1 - size)  # the picture goes from −1 to 1
    maps = torch.cat([torch.diag_embed(size), centre[..., None]], dim=2)  # (N, 2, 3): size · place + centre
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def jittered(x: torch.Tensor, how: AugmentConfig) -> torch.Tensor:
    """Brightness, contrast, saturation and hue, in this order; (N, 3, H, W), float."""

    def factor(most: float) -> torch.Tensor:
        return 1 + most * (2 * torch.rand(len(x), 1, 1, 1) - 1)

    if how.brightness:
        x = (x * factor(how.brightness)).clamp(0, 255)
    if how.contrast:
        x = torch.lerp(brightness(x).mean((2, 3), keepdim=True), x, factor(how.contrast)).clamp(0, 255)
    if how.saturation:
        x = torch.lerp(brightness(x), x, factor(how.saturation)).clamp(0, 255)
    if how.hue:
        x = turned(x, how.hue * (2 * torch.rand(len(x)) - 1)).clamp(0, 255)
    return x


def turned(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Colours turned by `by` (N,) of a circle about the axis of greys; brightness stays. x: (N, 3, H, W)."""
    yiq = torch.tensor(YIQ)
    cosine, sine, zero = torch.cos(math.tau * by), torch.sin(math.tau * by), torch.zeros_like(by)
    turn = torch.stack([zero + 1, zero, zero, zero, cosine, -sine, zero, sine, cosine], dim=1).view(-1, 3, 3)
    return torch.einsum("nij,njhw->nihw", torch.linalg.inv(yiq) @ turn @ yiq, x)


def blurred(x: torch.Tensor) -> torch.Tensor:
    """Each picture of `x` (N, C, H, W) under a Gaussian of its own random width; edges repeat outwards."""
    count, channels, height, width = x.shape
    reach = max(1, math.ceil(3 * BLUR[1] * width))
    deviation = torch.empty(count, 1).uniform_(*BLUR) * width
    kernel = torch.softmax(-((torch.arange(-reach, reach + 1) / deviation) ** 2) / 2, dim=1)  # (N, 2 · reach + 1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None, None]
    flat = F.pad(x.reshape(1, count * channels, height, width), (reach, reach, reach, reach), mode="replicate")
    flat = F.conv2d(flat, kernel, groups=count * channels)
    return F.conv2d(flat, kernel.mT, groups=count * channels).view_as(x)


def brightness(x: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) to (N, 3, H, W) without colour."""
    return torch.einsum("c,nchw->nhw", torch.tensor(GREY), x)[:, None].expand_as(x)


def _chance(x: torch.Tensor, probability: float) -> torch.Tensor:
    """(N, 1, 1, 1) bool."""
    return torch.rand(len(x), 1, 1, 1) < probability
