"""Augmentation of a whole batch of uint8 images.

All draws come from torch's generator, so that a seed gives the same images.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from vlmflow.images.boxes import Box
from vlmflow.training.augment_config import AugmentConfig

GREY = (0.299, 0.587, 0.114)  # luma weights of red, green and blue, ITU-R BT.601
YIQ = (GREY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # luma and two axes of chroma
BLUR = (0.1 / 224, 2.0 / 224)  # standard deviation of the blur, as a fraction of the image width


@dataclass(frozen=True)
class Views:
    """The part of each of N images that its augmented image shows.

    Coordinates span −1 to 1 in each image, x and y: a view is the rectangle `centre` ± `size`, which exceeds the image
    where that was made smaller, and is mirrored where `flipped`.

    centre, size: (N, 2).
    flipped: (N,) bool.
    """

    centre: torch.Tensor
    size: torch.Tensor
    flipped: torch.Tensor

    def move(self, row: int, box: Box) -> Box:
        """Where `box` of image `row` is in the augmented image, which has the size of the original."""
        sides = torch.tensor([box.width, box.height])
        corners = torch.tensor([[box.x0, box.y0], [box.x1, box.y1]]) / sides
        moved = ((((2 * corners - 1) - self.centre[row]) / self.size[row] + 1) / 2).clamp(0, 1)
        if self.flipped[row]:
            moved[:, 0] = 1 - moved[:, 0].flip(0)
        x0, y0, x1, y1 = (moved * sides).flatten().tolist()
        return Box(x0, y0, x1, y1, box.width, box.height)


def augment(images: torch.Tensor, config: AugmentConfig) -> torch.Tensor:
    """Augment `images` (N, 3, H, W) uint8, each with its own draws; returns the same shape and type."""
    return augment_with_views(images, config)[0]


def augment_with_views(
    images: torch.Tensor, config: AugmentConfig, keep: torch.Tensor | None = None, is_text: torch.Tensor | None = None
) -> tuple[torch.Tensor, Views]:
    """Augment `images` (N, 3, H, W) uint8, each with its own draws, and return their views too.

    Args:
        keep: (N, 4), x0, y0, x1, y1 of a rectangle in each image that its crop contains, in −1 to 1; NaN for none.
        is_text: (N,) bool, images that show a line of text: they are made smaller instead of cropped, and not mirrored.
    """
    x = images.float()
    views = draw_crops(len(x), config.area, config.aspect, keep)
    if is_text is not None:
        size = torch.where(is_text[:, None], 1 / views.size, views.size)
        # The smaller image lies anywhere within the frame.
        views = replace(views, size=size, centre=torch.where(is_text[:, None], views.centre / views.size, views.centre))
    x = crop(x, views)
    if config.flip:
        flipped = _bernoulli(x, config.flip)
        if is_text is not None:
            flipped &= ~is_text[:, None, None, None]
        x = torch.where(flipped, x.flip(-1), x)
        views = replace(views, flipped=flipped.flatten())
    if config.jitter:
        x = torch.where(_bernoulli(x, config.jitter), color_jitter(x, config), x)
    if config.grey:
        x = torch.where(_bernoulli(x, config.grey), to_grayscale(x), x)
    if config.blur:
        x = torch.where(_bernoulli(x, config.blur), gaussian_blur(x), x)
    return x.round().clamp(0, 255).to(torch.uint8), views


def draw_crops(count: int, area: tuple[float, ...], aspect: float, keep: torch.Tensor | None = None) -> Views:
    """Draw a rectangle of each of `count` images; `keep` as in `augment_with_views`.

    Area is uniform and aspect ratio log-uniform; a side longer than the image is cut, and one shorter than `keep` is
    extended.

    Source: Szegedy et al. 2015, section 6.
    """
    share = torch.empty(count).uniform_(*area)
    shape = torch.exp(torch.empty(count).uniform_(-1, 1) * math.log(aspect))
    size = torch.stack([(share * shape).sqrt(), (share / shape).sqrt()], dim=1).clamp(max=1)  # (N, 2): width, height
    position = 2 * torch.rand(count, 2) - 1
    if keep is None:
        return Views(position * (1 - size), size, torch.zeros(count, dtype=torch.bool))
    low, high = keep.clamp(-1, 1).view(count, 2, 2).unbind(1)  # (N, 2) each
    none = keep.isnan().any(1, keepdim=True)
    size = torch.where(none, size, torch.maximum(size, (high - low) / 2))
    centre = position * (1 - size)
    inside = torch.minimum(torch.maximum(centre, high - size), low + size)
    return Views(torch.where(none, centre, inside), size, torch.zeros(count, dtype=torch.bool))


def crop(x: torch.Tensor, views: Views) -> torch.Tensor:
    """The views of `x` (N, C, H, W) float, not yet mirrored, resized to the full image; edge pixels repeat outside."""
    maps = torch.cat(
        [torch.diag_embed(views.size), views.centre[..., None]], dim=2
    )  # (N, 2, 3): size · position + centre
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def color_jitter(x: torch.Tensor, config: AugmentConfig) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue, in this order; (N, 3, H, W), float."""

    def factor(maximum: float) -> torch.Tensor:
        return 1 + maximum * (2 * torch.rand(len(x), 1, 1, 1) - 1)

    if config.brightness:
        x = (x * factor(config.brightness)).clamp(0, 255)
    if config.contrast:
        x = torch.lerp(to_grayscale(x).mean((2, 3), keepdim=True), x, factor(config.contrast)).clamp(0, 255)
    if config.saturation:
        x = torch.lerp(to_grayscale(x), x, factor(config.saturation)).clamp(0, 255)
    if config.hue:
        x = rotate_hue(x, config.hue * (2 * torch.rand(len(x)) - 1)).clamp(0, 255)
    return x


def rotate_hue(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate the hue of `x` (N, 3, H, W) by `turns` (N,), fractions of the colour circle; luma is unchanged."""
    yiq = torch.tensor(YIQ)
    cosine, sine, zero = torch.cos(math.tau * turns), torch.sin(math.tau * turns), torch.zeros_like(turns)
    rotation = torch.stack([zero + 1, zero, zero, zero, cosine, -sine, zero, sine, cosine], dim=1).view(-1, 3, 3)
    return torch.einsum("nij,njhw->nihw", torch.linalg.inv(yiq) @ rotation @ yiq, x)


def gaussian_blur(x: torch.Tensor) -> torch.Tensor:
    """Blur each image of `x` (N, C, H, W) by a Gaussian of random width, with edge pixels repeated as padding."""
    count, channels, height, width = x.shape
    radius = max(1, math.ceil(3 * BLUR[1] * width))
    sigma = torch.empty(count, 1).uniform_(*BLUR) * width
    kernel = torch.softmax(-((torch.arange(-radius, radius + 1) / sigma) ** 2) / 2, dim=1)  # (N, 2 · radius + 1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None, None]
    flat = F.pad(x.reshape(1, count * channels, height, width), (radius, radius, radius, radius), mode="replicate")
    flat = F.conv2d(flat, kernel, groups=count * channels)
    return F.conv2d(flat, kernel.mT, groups=count * channels).view_as(x)


def to_grayscale(x: torch.Tensor) -> torch.Tensor:
    """The luma of `x` (N, 3, H, W) in all three channels."""
    return torch.einsum("c,nchw->nhw", torch.tensor(GREY), x)[:, None].expand_as(x)


def _bernoulli(x: torch.Tensor, probability: float) -> torch.Tensor:
    """A draw for each image: (N, 1, 1, 1) bool."""
    return torch.rand(len(x), 1, 1, 1) < probability
