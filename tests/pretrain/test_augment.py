"""Image augmentation: geometry of crops, colour changes, and reproducibility by seed."""

import colorsys

import pytest
import torch
from torch.nn import functional as F

from vlmflow.config import recipes
from vlmflow.errors import RecipeError
from vlmflow.images.boxes import Box
from vlmflow.training.augment import (
    augment,
    augment_with_views,
    color_jitter,
    crop,
    draw_crops,
    gaussian_blur,
    rotate_hue,
    to_grayscale,
)
from vlmflow.training.augment_config import AugmentConfig, ViewConfig
from vlmflow.training.pretraining.config import PretrainConfig


def smooth_images(count: int = 4, side: int = 32) -> torch.Tensor:
    """Smooth random images, (count, 3, side, side) uint8."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(256, (count, 3, 6, 6), generator=generator).float()
    return F.interpolate(small, (side, side), mode="bilinear").round().to(torch.uint8)


def test_a_crop_of_the_full_area_leaves_the_image_unchanged() -> None:
    x = smooth_images()
    assert torch.equal(augment(x, AugmentConfig(area=(1, 1), aspect=1)), x)


def test_a_crop_is_a_rectangle_within_the_area_limits_resized_to_the_image() -> None:
    side = 64
    across = torch.arange(side).float().expand(side, side)
    x = torch.stack([across, across.T]).repeat(500, 1, 1, 1)  # channels hold each pixel's column and row
    torch.manual_seed(0)
    out = crop(x, draw_crops(len(x), (0.2, 0.6), 1.5))
    # Away from the edges, one pixel of the output spans `width` (or `height`) pixels of the input.
    width = out[:, 0, 32, 40] - out[:, 0, 32, 24]
    height = out[:, 1, 40, 32] - out[:, 1, 24, 32]
    width, height = width / 16, height / 16
    area, shape = width * height, width / height
    assert area.min() > 0.199 and area.max() < 0.601 and area.std() > 0.1
    assert shape.min() > 1 / 1.501 and shape.max() < 1.501 and shape.log().mean().abs() < 0.05
    left = out[:, 0, 32, 32] - width * side / 2
    assert left.min() > -1 and (left + width * side).max() < side + 1, "the crop lies inside"
    assert left.std() > 3, "the position varies"
    torch.testing.assert_close(out[:, 0, 10], out[:, 0, 50])  # no shear


def test_a_crop_equals_the_interpolated_rectangle() -> None:
    x, errors = smooth_images(1, 32).float(), []
    torch.manual_seed(3)
    out = crop(x, draw_crops(len(x), (0.25, 0.25), 1))  # a square of 16 pixels, usually at a fractional position
    upscaled = F.interpolate(x, (512, 512), mode="bilinear")
    for top in range(0, 257, 4):
        for left in range(0, 257, 4):
            part = upscaled[..., top : top + 256, left : left + 256]
            errors.append((F.interpolate(part, (32, 32), mode="bilinear") - out).abs().mean())
    assert min(errors) < 2.0 and sorted(errors)[len(errors) // 2] > 10


def test_flips_have_the_configured_frequency() -> None:
    x = smooth_images(1).repeat(400, 1, 1, 1)
    torch.manual_seed(0)
    out = augment(x, AugmentConfig(area=(1, 1), aspect=1, flip=0.3))
    flipped = (out == x.flip(-1)).flatten(1).all(1)
    assert ((out == x).flatten(1).all(1) | flipped).all()
    assert 0.22 < flipped.float().mean() < 0.38


def test_brightness_contrast_and_saturation_scale_linearly_around_their_centre() -> None:
    x = smooth_images().float() / 4 + 96  # far from the clamp
    torch.manual_seed(0)
    bright = color_jitter(x, AugmentConfig(brightness=0.3)) / x
    torch.testing.assert_close(bright, bright[:, :1, :1, :1].expand_as(bright))
    assert (bright - 1).abs().max() <= 0.3 and bright[:, 0, 0, 0].std() > 0
    mean = to_grayscale(x).mean((1, 2, 3), keepdim=True)
    for config, centre in ((AugmentConfig(contrast=0.5), mean), (AugmentConfig(saturation=0.5), to_grayscale(x))):
        out = color_jitter(x, config)
        factor = ((out - centre) * (x - centre)).sum((1, 2, 3)) / (x - centre).square().sum((1, 2, 3))
        torch.testing.assert_close(out, centre + factor[:, None, None, None] * (x - centre), atol=1e-2, rtol=1e-4)
        assert (factor - 1).abs().max() <= 0.5 and factor.std() > 0


def test_rotate_hue_keeps_luminance_and_is_invertible() -> None:
    x = smooth_images().float()
    torch.testing.assert_close(rotate_hue(x, torch.zeros(4)), x, atol=1e-2, rtol=1e-4)
    third = rotate_hue(x, torch.full((4,), 1 / 3))
    torch.testing.assert_close(to_grayscale(third), to_grayscale(x), atol=0.5, rtol=0)
    torch.testing.assert_close(rotate_hue(third, torch.full((4,), -1 / 3)), x, atol=1e-2, rtol=1e-4)
    red = torch.tensor([160.0, 60.0, 60.0])[None, :, None, None]
    hues = [
        colorsys.rgb_to_hsv(*(rotate_hue(red, torch.tensor([turn])).flatten() / 255).tolist())[0] for turn in (0, 1 / 3)
    ]
    assert abs((hues[1] - hues[0]) % 1 - 1 / 3) < 0.1 or abs((hues[0] - hues[1]) % 1 - 1 / 3) < 0.1


def test_a_blur_keeps_the_mean_and_reduces_noise() -> None:
    torch.manual_seed(0)
    noise = torch.rand(8, 3, 224, 224) * 255
    out = gaussian_blur(noise)
    torch.testing.assert_close(out.mean((2, 3)), noise.mean((2, 3)), atol=1.0, rtol=0)
    remaining = out.std((1, 2, 3)) / noise.std((1, 2, 3))
    assert remaining.min() > 0.1 and remaining.max() <= 1.001 and remaining.std() > 0.05
    constant = torch.full((2, 3, 16, 16), 7.0)
    torch.testing.assert_close(gaussian_blur(constant), constant)


def test_views_depend_on_the_seed_only() -> None:
    x, views = smooth_images(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        views.append(augment(x, ViewConfig()))
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
    assert views[0].dtype == torch.uint8 and views[0].shape == x.shape


def test_a_recipe_sets_augmentation_and_views_and_rejects_invalid_values() -> None:
    section = recipes.load(
        PretrainConfig, {"pretrain": {"augment": {"area": [0.5, 1]}, "views": {"flip": 0}}}, "pretrain"
    )
    assert section.augment == AugmentConfig(area=(0.5, 1.0)) and section.views == ViewConfig(flip=0.0)
    assert section.views is not None and section.views.area == (0.08, 1.0), "unset values keep SLIP's defaults"
    assert recipes.load(PretrainConfig, {}, "pretrain").augment is None
    for invalid in ({"area": [0, 1]}, {"area": [0.5]}, {"aspect": 0.5}, {"flip": 2}, {"hue": 0.6}):
        with pytest.raises(RecipeError, match=r"pretrain\.augment[.:] ?" + next(iter(invalid))):
            recipes.load(PretrainConfig, {"pretrain": {"augment": invalid}}, "pretrain")


def marked_images(boxes: list[Box]) -> torch.Tensor:
    """A black image for each box, white inside it: (N, 3, 64, 64) uint8."""
    images = torch.zeros(len(boxes), 3, 64, 64, dtype=torch.uint8)
    for image, box in zip(images, boxes, strict=True):
        image[:, int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = 255
    return images


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_boxes_move_with_the_image_and_stay_inside_its_crop(flip: float) -> None:
    corners = [(8, 8, 24, 40), (40, 4, 60, 20), (0, 0, 64, 30), (50, 50, 60, 64)] * 10
    boxes = [Box(*box, 64, 64) for box in corners]
    keep = torch.tensor(corners) / 32 - 1
    torch.manual_seed(0)
    out, views = augment_with_views(marked_images(boxes), AugmentConfig(area=(0.3, 0.9), flip=flip), keep)
    assert not flip or 5 < views.flipped.sum() < 35
    for i, box in enumerate(boxes):
        y, x = (out[i, 0] > 127).nonzero().T
        moved = views.move(i, box)
        seen = (x.min(), y.min(), x.max() + 1, y.max() + 1)
        assert all(abs(one - float(other)) <= 1.0 for one, other in zip(vars_of(moved), seen, strict=True)), (
            box,
            moved,
        )


def vars_of(box: Box) -> tuple[float, float, float, float]:
    return box.x0, box.y0, box.x1, box.y1


def test_a_line_of_text_is_neither_cropped_nor_mirrored() -> None:
    frame = Box(2, 2, 62, 62, 64, 64)
    images, is_text = marked_images([frame] * 40), torch.arange(40) % 2 == 0
    images[:, :, 2:62, 2:20] = 100  # the left end of the line
    torch.manual_seed(0)
    _, views = augment_with_views(images, AugmentConfig(area=(0.5, 0.8), flip=1.0), is_text=is_text)
    assert views.flipped.tolist() == (~is_text).tolist()
    for i in range(0, 40, 2):
        moved = views.move(i, frame)
        assert 0 < moved.x0 < moved.x1 < 64 and 0 < moved.y0 < moved.y1 < 64, "the whole line is visible"
