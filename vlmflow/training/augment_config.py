"""How images are augmented in training, as a recipe states it."""

from pydantic import Field, model_validator

from vlmflow.config.section import Section


class AugmentConfig(Section):
    """Random changes of an image each time it is used; by default the crop only.

    Captions name left and right, and colours: a flip or a hue rotation makes them false.

    Source: the crop is that of open_clip's training.
    """

    area: tuple[float, ...] = Field(
        default=(0.9, 1.0), description="Range [least, most] of the crop's fraction of the image."
    )
    aspect: float = Field(
        default=4 / 3, ge=1, description="Largest aspect ratio of the crop, wide or tall: longer over shorter side."
    )
    flip: float = Field(default=0.0, ge=0, le=1, description="Probability of a horizontal flip.")
    brightness: float = Field(
        default=0.0, ge=0, le=1, description="Largest change of the brightness factor from 1; 0 is off."
    )
    contrast: float = Field(
        default=0.0, ge=0, le=1, description="Largest change of the contrast factor from 1; 0 is off."
    )
    saturation: float = Field(
        default=0.0, ge=0, le=1, description="Largest change of the saturation factor from 1; 0 is off."
    )
    hue: float = Field(
        default=0.0, ge=0, le=0.5, description="Largest hue rotation, where 1 is the full circle; 0 is off."
    )
    jitter: float = Field(
        default=1.0, ge=0, le=1, description="Probability of changing brightness, contrast, saturation, hue."
    )
    grey: float = Field(default=0.0, ge=0, le=1, description="Probability of conversion to greyscale.")
    blur: float = Field(default=0.0, ge=0, le=1, description="Probability of a Gaussian blur.")

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

    area: tuple[float, ...] = Field(
        default=(0.8, 1.0), description="Range [least, most] of the crop's fraction of the image."
    )
    brightness: float = Field(
        default=0.2, ge=0, le=1, description="Largest change of the brightness factor from 1; 0 is off."
    )
    contrast: float = Field(
        default=0.2, ge=0, le=1, description="Largest change of the contrast factor from 1; 0 is off."
    )
    saturation: float = Field(
        default=0.2, ge=0, le=1, description="Largest change of the saturation factor from 1; 0 is off."
    )
