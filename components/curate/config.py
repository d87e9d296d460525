"""What a recipe says of curation."""

import difflib
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from components.curate.balance import BalanceConfig
from components.curate.clusters import ClusterConfig
from components.curate.label_consistency import LabelConsistencyConfig
from components.curate.score import ScoreConfig


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """The thresholds of the rules; a rule whose threshold is 0, null or empty by default is off.

    Pictures: `min_side` in pixels; `max_aspect` long side over short side, null for any; `min_contrast` in grey
    levels; `min_correlation` of neighbouring pixels, white noise is below it; `min_sharpness` variance of the
    Laplacian at 256 px; `min_entropy` of brightness in bits; `min_colour` colourfulness, a line drawing has none.
    Captions: `min_words` and `min_characters` without URLs, file names and markup; `max_words`; `languages` by
    ISO code, at least `min_language` likely together; `min_relations` stated in English; `bad_words` files of
    one a line; `personal_data` (e-mail addresses, telephone numbers) is flagged, removed, or drops the pair.
    Repeats: `near_bits` and `near_levels` say how far two copies of a picture may be apart, in bits of dHash and
    in levels of any cell; `near_levels: null` drops exact duplicates only. `one_per_picture: false` keeps a
    picture's other captions; `per_caption` pictures of one caption are enough. `decontaminate` names evaluation
    sets, whose pictures may not be trained on.
    `exclude` is a file of uids that were taken down, as `vlmflow takedown` writes it: they are in no split of what is
    kept.
    Alignment and diversity: `score`, `agreement`, `clusters` and `balance`. `captioner` is a checkpoint that
    proposes captions; the better one by the score is kept. `bootstrap` is a section of pretrain.
    `processes` share the work on this machine (`engine: native`) or on a Ray cluster (`engine: ray`). `ray` is the
    cluster's address, RAY_ADDRESS where it is not given; `ray: job` runs the step as a RayJob with a cluster of its
    own, which sees what lies on the shared volume and in the image. None of them changes the outcome.
    """

    min_side: int = 16
    max_aspect: float | None = 6.0
    min_contrast: float = 4.0
    min_correlation: float = 0.35
    min_sharpness: float = 0.0
    min_entropy: float = 0.0
    min_colour: float = 0.0
    min_words: int = 1
    max_words: int | None = None
    min_characters: int = 2
    languages: tuple[str, ...] = ()
    min_language: float = 0.1
    min_relations: int = 0
    bad_words: tuple[str, ...] = ()
    personal_data: Literal["ignore", "flag", "remove", "drop"] = "ignore"
    near_bits: int = 8
    near_levels: float | None = 16.0
    one_per_picture: bool = True
    per_caption: int | None = None
    decontaminate: tuple[str, ...] = ()
    exclude: str | None = None
    score: ScoreConfig = field(default_factory=ScoreConfig)
    agreement: LabelConsistencyConfig = field(default_factory=LabelConsistencyConfig)
    clusters: ClusterConfig = field(default_factory=ClusterConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    captioner: str | None = None
    bootstrap: dict[str, Any] = field(default_factory=dict)
    engine: Literal["native", "ray"] = "native"
    ray: str | None = None
    processes: int = 1
    seed: int = 0

    @property
    def outcome(self) -> dict[str, Any]:
        """What the outcome depends on: all of it but who does the work."""
        return asdict(self) | {"engine": "", "ray": "", "processes": 0}

    def __post_init__(self) -> None:
        if self.min_side < 1:
            raise ValueError(f"min_side must be at least 1 pixel, got {self.min_side}")
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError(f"max_aspect is long over short side, at least 1 or null, got {self.max_aspect}")
        if not 0 <= self.min_contrast <= 127:
            raise ValueError(f"min_contrast is a deviation in grey levels, 0 to 127, got {self.min_contrast}")
        if not 0 <= self.min_correlation <= 1:
            raise ValueError(f"min_correlation must be from 0 to 1, got {self.min_correlation}")
        if self.min_words < 0 or self.min_characters < 0:
            raise ValueError("min_words and min_characters cannot be negative")
        if not 0 <= self.near_bits <= 16:
            raise ValueError(f"near_bits of a 64-bit hash must be from 0 to 16, got {self.near_bits}")
        if self.near_levels is not None and not 0 <= self.near_levels <= 255:
            raise ValueError(f"near_levels must be from 0 to 255 or null, got {self.near_levels}")
        for name, high in (("min_sharpness", None), ("min_entropy", 8), ("min_colour", None), ("min_language", 1)):
            value = getattr(self, name)
            if value < 0 or (high is not None and value > high):
                raise ValueError(f"{name} must be at least 0{f' and at most {high}' if high else ''}, got {value}")
        if self.max_words is not None and self.max_words < max(1, self.min_words):
            raise ValueError(f"max_words must be at least 1 and min_words, or null, got {self.max_words}")
        if self.min_relations < 0:
            raise ValueError(f"min_relations cannot be negative, got {self.min_relations}")
        if self.per_caption is not None and self.per_caption < 1:
            raise ValueError(f"per_caption must be at least 1 picture or null, got {self.per_caption}")
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1, got {self.processes}")
        if self.ray is not None and self.engine != "ray":
            raise ValueError(f"ray {self.ray!r} has no meaning with engine {self.engine}; set engine to ray")
        _check_languages(self.languages)
        needs = {
            "agreement.classes": self.agreement.classes,
            "clusters": self.clusters.wanted,
            "captioner": self.captioner,
        }
        for name, wanted in needs.items():
            if wanted and self.score.model == "none":
                raise ValueError(
                    f"{name} needs an encoder; set score.model to bootstrap, a folder or a Hugging Face id"
                )


def _check_languages(languages: tuple[str, ...]) -> None:
    if not languages:
        return
    from components.curate import language  # loads a model

    for code in languages:
        if code not in language.known():
            near = difflib.get_close_matches(code, language.known(), n=3, cutoff=0)
            raise ValueError(f"languages: {code!r} is no known ISO code; the nearest are {', '.join(sorted(near))}")
