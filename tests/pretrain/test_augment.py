"""Augmentation: crops are crops, colours change as they say, and a seed gives the same pictures."""

import colorsys

import pytest
import torch
from torch.nn import functional as F

from vlmflow.config import recipes
from vlmflow.errors import RecipeError
from vlmflow.training.pretraining.augment import (
    augment,
    color_jitter,
    gaussian_blur,
    random_resized_crop,
    rotate_hue,
    to_grayscale,
)
from vlmflow.training.pretraining.config import AugmentConfig, PretrainConfig, ViewConfig


def pictures(count: int = 4, side: int = 32) -> torch.Tensor:
    """Smooth random pictures."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randint(256, (count, 3, 6, 6), generator=generator).float()
    return F.interpolate(small, (side, side), mode="bilinear").round().to(torch.uint8)


def test_the_whole_picture_is_left_as_it_is() -> None:
    x = pictures()
    assert torch.equal(augment(x, AugmentConfig(area=(1, 1), aspect=1)), x)


def test_a_crop_is_a_rectangle_of_the_asked_area_stretched_to_the_picture() -> None:
    side = 64
    across = torch.arange(side).float().expand(side, side)
    x = torch.stack([across, across.T]).repeat(500, 1, 1, 1)  # every pixel says where it was
    torch.manual_seed(0)
    out = random_resized_crop(x, (0.2, 0.6), 1.5)
    # Away from the edges one step in the outcome is `width` (or `height`) of a step in the picture.
    width = out[:, 0, 32, 40] - out[:, 0, 32, 24]
    height = out[:, 1, 40, 32] - out[:, 1, 24, 32]
    width, height = width / 16, height / 16
    area, shape = width * height, width / height
    assert area.min() > 0.199 and area.max() < 0.601 and area.std() > 0.1
    assert shape.min() > 1 / 1.501 and shape.max() < 1.501 and shape.log().mean().abs() < 0.05
    left = out[:, 0, 32, 32] - width * side / 2
    assert left.min() > -1 and (left + width * side).max() < side + 1, "the crop lies inside"
    assert left.std() > 3, "and not always at one place"
    torch.testing.assert_close(out[:, 0, 10], out[:, 0, 50])  # no shear


def test_a_crop_is_what_interpolation_makes_of_the_rectangle() -> None:
    x, whole = pictures(1, 32).float(), []
    torch.manual_seed(3)
    out = random_resized_crop(x, (0.25, 0.25), 1)  # a square of 16 pixels somewhere, seldom at a whole pixel
    fine = F.interpolate(x, (512, 512), mode="bilinear")
    for top in range(0, 257, 4):
        for left in range(0, 257, 4):
            part = fine[..., top : top + 256, left : left + 256]
            whole.append((F.interpolate(part, (32, 32), mode="bilinear") - out).abs().mean())
    assert min(whole) < 2.0 and sorted(whole)[len(whole) // 2] > 10


def test_flips_are_as_frequent_as_asked() -> None:
    x = pictures(1).repeat(400, 1, 1, 1)
    torch.manual_seed(0)
    out = augment(x, AugmentConfig(area=(1, 1), aspect=1, flip=0.3))
    flipped = (out == x.flip(-1)).flatten(1).all(1)
    assert ((out == x).flatten(1).all(1) | flipped).all()
    assert 0.22 < flipped.float().mean() < 0.38


def test_brightness_contrast_and_saturation_are_linear_about_their_middle() -> None:
    x = pictures().float() / 4 + 96  # far from the clamp
    torch.manual_seed(0)
    bright = color_jitter(x, AugmentConfig(brightness=0.3)) / x
    torch.testing.assert_close(bright, bright[:, :1, :1, :1].expand_as(bright))
    assert (bright - 1).abs().max() <= 0.3 and bright[:, 0, 0, 0].std() > 0
    mean = to_grayscale(x).mean((1, 2, 3), keepdim=True)
    for how, middle in ((AugmentConfig(contrast=0.5), mean), (AugmentConfig(saturation=0.5), to_grayscale(x))):
        out = color_jitter(x, how)
        factor = ((out - middle) * (x - middle)).sum((1, 2, 3)) / (x - middle).square().sum((1, 2, 3))
        torch.testing.assert_close(out, middle + factor[:, None, None, None] * (x - middle), atol=1e-2, rtol=1e-4)
        assert (factor - 1).abs().max() <= 0.5 and factor.std() > 0


def test_a_turn_of_the_colours() -> None:
    x = pictures().float()
    torch.testing.assert_close(rotate_hue(x, torch.zeros(4)), x, atol=1e-2, rtol=1e-4)
    third = rotate_hue(x, torch.full((4,), 1 / 3))
    torch.testing.assert_close(to_grayscale(third), to_grayscale(x), atol=0.5, rtol=0)
    torch.testing.assert_close(rotate_hue(third, torch.full((4,), -1 / 3)), x, atol=1e-2, rtol=1e-4)
    red = torch.tensor([160.0, 60.0, 60.0])[None, :, None, None]
    hues = [
        colorsys.rgb_to_hsv(*(rotate_hue(red, torch.tensor([by])).flatten() / 255).tolist())[0] for by in (0, 1 / 3)
    ]
    assert abs((hues[1] - hues[0]) % 1 - 1 / 3) < 0.1 or abs((hues[0] - hues[1]) % 1 - 1 / 3) < 0.1


def test_a_blur_keeps_the_mean_and_takes_away_the_grain() -> None:
    torch.manual_seed(0)
    grain = torch.rand(8, 3, 224, 224) * 255
    out = gaussian_blur(grain)
    torch.testing.assert_close(out.mean((2, 3)), grain.mean((2, 3)), atol=1.0, rtol=0)
    left = out.std((1, 2, 3)) / grain.std((1, 2, 3))
    assert left.min() > 0.1 and left.max() <= 1.001 and left.std() > 0.05
    even = torch.full((2, 3, 16, 16), 7.0)
    torch.testing.assert_close(gaussian_blur(even), even)


def test_a_seed_gives_the_same_views_and_another_gives_others() -> None:
    x, found = pictures(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(augment(x, ViewConfig()))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert found[0].dtype == torch.uint8 and found[0].shape == x.shape


def test_what_a_recipe_says() -> None:
    section = recipes.load(
        PretrainConfig, {"pretrain": {"augment": {"area": [0.5, 1]}, "views": {"flip": 0}}}, "pretrain"
    )
    assert section.augment == AugmentConfig(area=(0.5, 1.0)) and section.views == ViewConfig(flip=0.0)
    assert section.views is not None and section.views.area == (0.08, 1.0), "the rest of a view stays SLIP's"
    assert recipes.load(PretrainConfig, {}, "pretrain").augment is None
    for wrong in ({"area": [0, 1]}, {"area": [0.5]}, {"aspect": 0.5}, {"flip": 2}, {"hue": 0.6}):
        with pytest.raises(RecipeError, match=r"pretrain\.augment[.:] ?" + next(iter(wrong))):
            recipes.load(PretrainConfig, {"pretrain": {"augment": wrong}}, "pretrain")
