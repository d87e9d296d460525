"""Regions of a picture without a detector: the cells of a grid, each told by a few convolutions.

VisualBERT and ViLBERT take the features of a detector trained before. Here they are learned along with everything
else, and the regions are the same for every picture. Source: Jiang et al. 2020 (grid features).
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import nn
from transformers import CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models import tokenizer as tokenizers


class GridFeatures(nn.Module):
    """Convolutions of stride 2 down to one vector for each patch.

    Args:
        width: of a vector; halved with every step back towards the pixels.
        patch_size: in pixels, a power of two.

    Raises:
        ValueError: another patch size.
    """

    def __init__(self, width: int, patch_size: int):
        super().__init__()
        steps = patch_size.bit_length() - 1
        if patch_size != 2**steps or steps < 1:
            raise ValueError(f"patch_size {patch_size}: convolutions of stride 2 lead to 2, 4, 8, 16, 32 …")
        channels = [3, *(max(8, width >> back) for back in reversed(range(1, steps))), width]
        # Each is normalised, so that how the weights start does not matter to what is seen.
        self.steps = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(1, o), nn.GELU())
                for i, o in pairwise(channels)
            )
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns (N, R, width), regions row by row."""
        return self.norm(self.steps(pixel_values).flatten(2).transpose(1, 2))


def grid_boxes(side: int) -> torch.Tensor:
    """Where the cells of a side × side grid are: (side², 5), x0, y0, x1, y1 and area, each from 0 to 1."""
    edge = torch.arange(side, dtype=torch.float32) / side
    y, x = (axis.flatten() for axis in torch.meshgrid(edge, edge, indexing="ij"))
    area = torch.full_like(x, 1 / side**2)
    return torch.stack([x, y, x + 1 / side, y + 1 / side, area], dim=1)


def pair_processor(texts: Iterable[str], image_size: int) -> CLIPProcessor:
    """Square pictures, bilinear, and captions in the words of `texts`."""
    side = {"height": image_size, "width": image_size}
    return CLIPProcessor(CLIPImageProcessorPil(size=side, do_center_crop=False, resample=2), vocabulary(texts))


def vocabulary(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """The words of `texts`, a token for a hidden one, and BERT's frame `<cls> … <sep>` around a caption."""
    tokenizer = tokenizers.build(texts, extra=("<cls>", "<sep>", "<mask>"), frame="<cls> $A <sep>")
    tokenizer.padding_side = "right"
    return tokenizer
