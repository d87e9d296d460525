"""Two views of a picture, and a head that holds them against each other.

Source: Mu et al. 2021 (SLIP), sections 3.1 and 3.2; Chen et al. 2020, section 3 (SimCLR).
"""

import torch
from torch import nn
from torch.nn import functional as F

AREA = (0.08, 1.0)  # of the picture that a crop holds
ASPECT = (3 / 4, 4 / 3)
COLOUR = 0.4  # how far brightness, contrast and saturation go from 1
LUMA = (0.299, 0.587, 0.114)


class HeadLayer(nn.Linear):
    """A linear map of the head; its weights start at 1/√fan-in."""


def projection_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Three layers, (N, width) to (N, out), with statistics of the batch in between: on GPUs that of all processes."""
    norm = nn.SyncBatchNorm if torch.cuda.is_available() else nn.BatchNorm1d
    return nn.Sequential(
        HeadLayer(width, hidden, bias=False),
        norm(hidden),
        nn.ReLU(),
        HeadLayer(hidden, hidden, bias=False),
        norm(hidden),
        nn.ReLU(),
        HeadLayer(hidden, out, bias=False),
    )


def view(pixel_values: torch.Tensor) -> torch.Tensor:
    """A random crop of each picture at its old size, mirrored or not, in other colours: (N, 3, H, W), normalised.

    Brightness and contrast turn about the normalised zero, which is a mean grey.
    """
    return _recoloured(_cropped(pixel_values))


def _cropped(x: torch.Tensor) -> torch.Tensor:
    count = len(x)
    area = x.new_empty(count).uniform_(*AREA)
    aspect = torch.exp(x.new_empty(count).uniform_(*torch.tensor(ASPECT).log().tolist()))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    across, down = (x.new_empty(count).uniform_(-1, 1) * (1 - side) for side in (width, height))
    mirror = torch.randint(2, (count,), device=x.device) * 2 - 1
    zero = torch.zeros_like(width)
    rows = [torch.stack(row, 1) for row in ((mirror * width, zero, across), (zero, height, down))]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _recoloured(x: torch.Tensor) -> torch.Tensor:
    def each(chance: float) -> torch.Tensor:
        return torch.rand(len(x), 1, 1, 1, device=x.device) < chance

    bright, contrast, colourful = x.new_empty(3, len(x), 1, 1, 1).uniform_(1 - COLOUR, 1 + COLOUR)
    changed = x * bright
    mean = changed.mean((1, 2, 3), keepdim=True)
    changed = mean + contrast * (changed - mean)
    changed = _grey(changed).lerp(changed, colourful)
    x = torch.where(each(0.8), changed, x)
    return torch.where(each(0.2), _grey(x), x)


def _grey(x: torch.Tensor) -> torch.Tensor:
    return (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True).expand_as(x)
