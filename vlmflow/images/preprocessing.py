"""Fast preprocessing of images for CLIP and SigLIP, equivalent to their image processors.

transformers resizes with Pillow or in floats. torch resizes bytes faster, and the result differs by at most one grey
level. Curation at web scale spends most of its time here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

KNOWN = ("CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor", "FlavaImageProcessor")
MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


def pixel_values(processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """Return `images` preprocessed for `processor`: (N, 3, H, W) float32.

    Args:
        processor: an image processor of transformers; one of an unknown kind is called directly.
        images: of any size, RGB.
    """
    if not _is_standard(processor):
        return processor(list(images), return_tensors="pt")["pixel_values"]
    return normalize(processor, resize_and_crop(processor, images))


def resize_and_crop(processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """Return the resized and cropped images before normalization: (N, 3, H, W) uint8.

    Raises:
        ValueError: the processor does more than resize, crop and normalise.
    """
    if not _is_standard(processor):
        raise ValueError(f"{type(processor).__name__} does more than resize, crop and normalise an image")
    mode = MODES[processor.resample]
    return torch.stack([_center_crop(processor, _resize(processor, image, mode)) for image in images])


def normalize(processor: Any, squares: torch.Tensor) -> torch.Tensor:
    """Normalize (N, 3, H, W) uint8 to float32 with the mean and standard deviation of the processor."""
    mean, std = (torch.tensor(getattr(processor, f"image_{name}"))[:, None, None] for name in ("mean", "std"))
    return squares.float().mul_(processor.rescale_factor / std).sub_(mean / std)


def denormalize(processor: Any, batch: torch.Tensor) -> torch.Tensor:
    """Invert `normalize`, clipped to 0..255: (N, 3, H, W) uint8."""
    mean, std = (torch.tensor(getattr(processor, f"image_{name}"))[:, None, None] for name in ("mean", "std"))
    return ((batch * std + mean) / processor.rescale_factor).round().clamp(0, 255).to(torch.uint8)


def _is_standard(processor: Any) -> bool:
    known = type(processor).__name__.startswith(KNOWN) and processor.do_rescale and processor.do_normalize
    return bool(known and processor.do_resize and getattr(processor, "resample", None) in MODES)


def _resize(processor: Any, image: Image.Image, mode: str) -> torch.Tensor:
    """(3, H, W) uint8: the short side to `shortest_edge`, or both sides as declared."""
    size = dict(processor.size)
    if edge := size.get("shortest_edge"):
        width, height = image.size
        short, long = min(width, height), max(width, height)
        far = int(edge * long / short)
        to = (edge, far) if height <= width else (far, edge)
    else:
        to = (size["height"], size["width"])
    grows = to[0] > image.height or to[1] > image.width  # rare; torch and Pillow differ by several levels here
    if grows:
        image = image.resize((to[1], to[0]), processor.resample)
    # Channels last, the memory layout of an image, is fast for bytes.
    rows = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return rows if rows.shape[1:] == to else F.interpolate(rows[None], to, mode=mode, antialias=True)[0]


def _center_crop(processor: Any, image: torch.Tensor) -> torch.Tensor:
    """Crop the centre; pad with black if the image is smaller than the crop."""
    if not getattr(processor, "do_center_crop", False):
        return image
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    down, right = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    if down < 0 or right < 0:
        above, left = max(0, -down), max(0, -right)
        below, beyond = max(0, height - image.shape[1] - above), max(0, width - image.shape[2] - left)
        image = F.pad(image, (left, beyond, above, below))
        down, right = max(0, down), max(0, right)
    return image[:, down : down + height, right : right + width]
