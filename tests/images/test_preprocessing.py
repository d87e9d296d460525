"""The fast way to a model's pixels gives what the model's own processor gives."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from transformers import CLIPImageProcessor, SiglipImageProcessor, ViTImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlmflow.images.preprocessing import pixel_values

SIZES = [(512, 512), (500, 333), (301, 420), (90, 60), (224, 224), (40, 200)]
PROCESSORS = [
    CLIPImageProcessorPil(),
    CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 80, "width": 120}),
    SiglipImageProcessor(size={"height": 64, "width": 48}),
    ViTImageProcessor(size={"height": 32, "width": 32}),
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: f"{type(p).__name__}-{dict(p.size)}")
def test_within_a_grey_level_of_the_processor(processor: CLIPImageProcessor) -> None:
    photo = Image.fromarray(astronaut())
    pictures = [photo.resize(size) for size in SIZES]
    ours = pixel_values(processor, pictures)
    theirs = torch.cat([processor([picture], return_tensors="pt")["pixel_values"] for picture in pictures])
    assert ours.shape == theirs.shape and ours.dtype == torch.float32
    level = processor.rescale_factor / np.min(processor.image_std)
    assert (ours - theirs).abs().max() <= 1.01 * level
    assert (ours - theirs).abs().mean() < 0.2 * level
