"""How images are augmented in training, as a recipe states it."""

from typing import Annotated

from pydantic import Field, model_validator

from vlmflow.config.section import Section

Area = Annotated[tuple[float, ...], Field(description="Range [least, most] of the crop's fraction of the image.")]
Flip = Annotated[float, Field(ge=0, le=1, description="Probability of a horizontal flip.")]
Brightness = Annotated[
    float, Field(ge=0, le=1, description="Largest change of the brightness factor from 1; 0 is off.")
]
Contrast = Annotated[float, Field(ge=0, le=1, description="Largest change of the contrast factor from 1; 0 is off.")]
Saturation = Annotated[
    float, Field(ge=0, le=1, description="Largest change of the saturation factor from 1; 0 is off.")
]
Hue = Annotated[float, Field(ge=0, le=0.5, description="Largest hue rotation, where 1 is the full circle; 0 is off.")]
Jitter = Annotated[
    float, Field(ge=0, le=1, description="Probability of changing brightness, contrast, saturation, hue.")
]
Grey = Annotated[float, Field(ge=0, le=1, description="Probability of conversion to greyscale.")]
Blur = Annotated[float, Field(ge=0, le=1, description="Probability of a Gaussian blur.")]


class AugmentConfig(Section):
    """Random changes of an image each time it is used; by default the crop only.

    Captions name left and right, and colours: a flip or a hue rotation makes them false.

    Source: the crop is that of open_clip's training.
    """

    area: Area = (0.9, 1.0)
    aspect: float = Field(
        default=4 / 3, ge=1, description="Largest aspect ratio of the crop, wide or tall: longer over shorter side."
    )
    flip: Flip = 0.0
    brightness: Brightness = 0.0
    contrast: Contrast = 0.0
    saturation: Saturation = 0.0
    hue: Hue = 0.0
    jitter: Jitter = 1.0
    grey: Grey = 0.0
    blur: Blur = 0.0

    @model_validator(mode="after")
    def _check_area(self) -> "AugmentConfig":
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(
                f"area must be a range [least, most] of fractions above 0 and at most 1, got {list(self.area)}"
            )
        return self


class MildAugmentConfig(AugmentConfig):
    """Random changes of an image each time it is fine-tuned on; by default a crop and changes of light.

    A crop contains all boxes of the image's turns, and the boxes move along. A line of text is made smaller instead of
    cropped, and never mirrored. Captions name left and right, and colours: a flip or a hue rotation makes them false.
    """

    area: Area = (0.8, 1.0)
    brightness: Brightness = 0.2
    contrast: Contrast = 0.2
    saturation: Saturation = 0.2


class ViewConfig(AugmentConfig):
    """The two views of an image that SLIP compares, with strong augmentation.

    Source: Mu et al. 2021, section 4; the values are those of SimCLR's line (Chen et al. 2020, appendix A).
    """

    area: Area = (0.08, 1.0)
    flip: Flip = 0.5
    brightness: Brightness = 0.4
    contrast: Contrast = 0.4
    saturation: Saturation = 0.4
    hue: Hue = 0.1
    jitter: Jitter = 0.8
    grey: Grey = 0.2
    blur: Blur = 0.5
