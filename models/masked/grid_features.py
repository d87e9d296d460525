"""Image regions without a detector: the cells of a grid, with features from a few convolutions.

VisualBERT and ViLBERT use features of a pretrained detector. Here the features are trained with the rest of the model,
and the regions are the same for every image. Source: Jiang et al. 2020 (grid features).
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import nn
from transformers import CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.tokenizer import build_tokenizer


class GridFeatures(nn.Module):
    """Convolutions of stride 2 down to one vector for each patch.

    Args:
        width: size of a vector; each earlier layer has half as many channels, but at least 8.
        patch_size: in pixels, a power of two.

    Raises:
        ValueError: `patch_size` is not a power of two.
    """

    def __init__(self, width: int, patch_size: int):
        super().__init__()
        layers = patch_size.bit_length() - 1
        if patch_size != 2**layers or layers < 1:
            raise ValueError(f"patch_size must be a power of two for convolutions of stride 2, got {patch_size}")
        channels = [3, *(max(8, width >> back) for back in reversed(range(1, layers))), width]
        # The normalisation makes the features independent of the scale of the initial weights.
        self.convolutions = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(1, o), nn.GELU())
                for i, o in pairwise(channels)
            )
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: (N, 3, H, W); returns (N, R, width), regions row by row."""
        return self.norm(self.convolutions(pixel_values).flatten(2).transpose(1, 2))


def grid_boxes(side: int) -> torch.Tensor:
    """Boxes of the cells of a side × side grid: (side², 5), x0, y0, x1, y1 and area, each from 0 to 1."""
    edge = torch.arange(side, dtype=torch.float32) / side
    y, x = (axis.flatten() for axis in torch.meshgrid(edge, edge, indexing="ij"))
    area = torch.full_like(x, 1 / side**2)
    return torch.stack([x, y, x + 1 / side, y + 1 / side, area], dim=1)


def build_pair_processor(texts: Iterable[str], image_size: int) -> CLIPProcessor:
    """Build a processor of square images, resized bilinearly, and of captions, with a vocabulary from `texts`."""
    size = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessorPil(size=size, do_center_crop=False, resample=2)
    return CLIPProcessor(image_processor, build_bert_tokenizer(texts))


def build_bert_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with a mask token and BERT's frame `<cls> … <sep>` around every caption."""
    tokenizer = build_tokenizer(texts, extra=("<cls>", "<sep>", "<mask>"), frame="<cls> $A <sep>")
    tokenizer.padding_side = "right"
    return tokenizer
