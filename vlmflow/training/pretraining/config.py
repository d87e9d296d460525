"""The configuration of pretraining: family, budget, augmentation and optional loss terms."""

from dataclasses import asdict, dataclass, field
from typing import Any

from models.zoo import ZOO
from vlmflow.training.config import TrainingConfig


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


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What to pretrain, and for how long.

    `model` holds sizes by the names of the family's builder. `start` goes on from weights that are there: a folder, or
    a name on the Hugging Face hub. `shuffle_pairs` trains the control: what belongs together is dealt at
    random (see `control.py`).

    What follows is off unless it is given. `augment` changes pictures each time they are seen, `views` says how for
    the two that SLIP compares. `negatives` captions that are nearly right stand against every caption. `mining` is
    the share of a batch whose captions are alike. `max_logit_scale` bounds the factor on cosines after every step.
    `ema` is the decay of the weights' moving average, which is then what is kept. `drop_patches` is the share of the
    patches that a picture tower does not see while it learns.
    """

    family: str = "sketch-dual"
    start: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    shuffle_pairs: bool = False
    augment: AugmentConfig | None = None
    views: ViewConfig | None = None
    negatives: int = 0
    mining: float = 0.0
    max_logit_scale: float | None = None
    ema: float | None = None
    drop_patches: float = 0.0

    def __post_init__(self) -> None:
        if self.family not in ZOO:
            raise ValueError(f"family {self.family!r} is not in the zoo: {', '.join(ZOO)}")
        if self.start is not None and self.model:
            raise ValueError(f"start {self.start!r} brings its sizes with it; leave model out")
        if self.training.save_every and self.training.trainer.get("dataloader_num_workers"):
            raise ValueError("save_every needs dataloader_num_workers 0: a worker's draws cannot be repeated")
        if self.negatives < 0:
            raise ValueError(f"negatives must not be negative, got {self.negatives}")
        if not 0 <= self.mining <= 1:
            raise ValueError(f"mining is a share from 0 to 1, got {self.mining}")
        if self.max_logit_scale is not None and self.max_logit_scale < 1:
            raise ValueError(f"max_logit_scale must be at least 1, got {self.max_logit_scale}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is a decay between 0 and 1, got {self.ema}")
        if not 0 <= self.drop_patches < 1:
            raise ValueError(f"drop_patches is a share from 0 to below 1, got {self.drop_patches}")

    def plain(self) -> dict[str, Any]:
        """The section as JSON holds it."""
        return asdict(self)
