"""What a recipe says of how pictures change each time they are seen."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What may become of a picture; by default the crop alone.

    `area` is the range of the crop's share of the picture, `aspect` the widest shape of it, and the tallest. `flip`,
    `grey` and `blur` are probabilities. `brightness`, `contrast` and `saturation` are the most by which each is
    multiplied, up or down from 1; `hue` is the most by which colours turn, where 1 is the whole circle; `jitter` is
    the probability of these four. Captions say left and right, and name colours: a flip or a turn of the colours
    makes them false.

    Source: the crop is open_clip's for training.
    """

    area: tuple[float, ...] = (0.9, 1.0)
    aspect: float = 4 / 3
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 1.0
    grey: float = 0.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is a range [least, most] of shares above 0 and at most 1, got {list(self.area)}")
        if self.aspect < 1:
            raise ValueError(f"aspect is the longer side over the shorter, at least 1, got {self.aspect}")
        for name in ("flip", "brightness", "contrast", "saturation", "jitter", "grey", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be from 0 to 0.5, which is the opposite colour, got {self.hue}")


@dataclass(frozen=True, kw_only=True)
class ViewConfig(AugmentConfig):
    """The two views of a picture that SLIP compares, as strong as comparing pictures asks for.

    Source: Mu et al. 2021, section 4; the values are those of SimCLR's line (Chen et al. 2020, appendix A).
    """

    area: tuple[float, ...] = (0.08, 1.0)
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
