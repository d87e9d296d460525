"""Pictures to the tensor that a CLIP or a SigLIP takes, as its image processor makes it, in less time.

transformers resizes with Pillow or in floats; torch resizes bytes faster, and the outcome differs by a grey level at
most. Curation at web scale spends most of its time here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

KNOWN = ("CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor", "FlavaImageProcessor")
MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


def pixel_values(processor: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """What `processor` makes of `pictures`: (N, 3, H, W) float32.

    Args:
        processor: an image processor of transformers; one that is not of a known kind is asked itself.
        pictures: of any size, RGB.
    """
    if not _is_standard(processor):
        return processor(list(pictures), return_tensors="pt")["pixel_values"]
    return normalize(processor, resize_and_crop(processor, pictures))


def resize_and_crop(processor: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """`pictures` as the model will see them, before they are normalised: (N, 3, H, W) uint8.

    Raises:
        ValueError: the processor does more than resize, crop and normalise.
    """
    if not _is_standard(processor):
        raise ValueError(f"{type(processor).__name__} does more than resize, crop and normalise a picture")
    mode = MODES[processor.resample]
    return torch.stack([_center_crop(processor, _resize(processor, picture, mode)) for picture in pictures])


def normalize(processor: Any, squares: torch.Tensor) -> torch.Tensor:
    """squares: (N, 3, H, W) uint8; returns float32 with the processor's mean and deviation taken out."""
    mean, std = (torch.tensor(getattr(processor, f"image_{name}"))[:, None, None] for name in ("mean", "std"))
    return squares.float().mul_(processor.rescale_factor / std).sub_(mean / std)


def denormalize(processor: Any, batch: torch.Tensor) -> torch.Tensor:
    """What `normalised` was made from, clipped to what a picture can hold: (N, 3, H, W) uint8."""
    mean, std = (torch.tensor(getattr(processor, f"image_{name}"))[:, None, None] for name in ("mean", "std"))
    return ((batch * std + mean) / processor.rescale_factor).round().clamp(0, 255).to(torch.uint8)


def _is_standard(processor: Any) -> bool:
    known = type(processor).__name__.startswith(KNOWN) and processor.do_rescale and processor.do_normalize
    return bool(known and processor.do_resize and getattr(processor, "resample", None) in MODES)


def _resize(processor: Any, picture: Image.Image, mode: str) -> torch.Tensor:
    """(3, H, W) uint8: the short side to `shortest_edge`, or both sides as declared."""
    size = dict(processor.size)
    if edge := size.get("shortest_edge"):
        width, height = picture.size
        short, long = min(width, height), max(width, height)
        far = int(edge * long / short)
        to = (edge, far) if height <= width else (far, edge)
    else:
        to = (size["height"], size["width"])
    grows = to[0] > picture.height or to[1] > picture.width  # rare, and there the two differ by some levels
    if grows:
        picture = picture.resize((to[1], to[0]), processor.resample)
    # Channels last, as a picture lies in memory, is the fast way for bytes.
    rows = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return rows if rows.shape[1:] == to else F.interpolate(rows[None], to, mode=mode, antialias=True)[0]


def _center_crop(processor: Any, picture: torch.Tensor) -> torch.Tensor:
    """The middle of it, black around it where it is smaller than the crop."""
    if not getattr(processor, "do_center_crop", False):
        return picture
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    down, right = (picture.shape[1] - height) // 2, (picture.shape[2] - width) // 2
    if down < 0 or right < 0:
        above, left = max(0, -down), max(0, -right)
        below, beyond = max(0, height - picture.shape[1] - above), max(0, width - picture.shape[2] - left)
        picture = F.pad(picture, (left, beyond, above, below))
        down, right = max(0, down), max(0, right)
    return picture[:, down : down + height, right : right + width]
