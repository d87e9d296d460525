"""The section `curate` of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vlmflow.config.nearest import nearest
from vlmflow.config.section import Section


class ScoreConfig(Section):
    """Image-text scores: the encoder that computes them, and which pairs are kept."""

    model: str = Field(
        default="none",
        min_length=1,
        description="Encoder: `none`, `bootstrap` (a small encoder trained on the pairs that passed the rules), or a "
        "folder or Hugging Face id of a CLIP- or SigLIP-like model.",
    )
    threshold: Literal["otsu"] | Annotated[float, Field(ge=-1, le=1)] = Field(
        default="otsu", description="Smallest cosine that is kept; `otsu` splits this dataset's scores in two groups."
    )
    fraction: float | None = Field(
        default=None, gt=0, le=1, description="Fraction of pairs to keep, the best by score; null uses `threshold`."
    )
    mask_text: bool = Field(
        default=False, description="Paint over the annotated lines of text of an image before it is scored."
    )
    cache: str | None = Field(
        default=None, description="Folder that caches embeddings and scores; null caches nothing."
    )
    batch_size: int = Field(default=256, ge=1, description="Images or captions in a batch of the encoder.")


class LabelConsistencyConfig(Section):
    """Zero-shot classification of the image, which must agree with the class that the caption names."""

    classes: tuple[str, ...] = Field(
        default=(), description="Class names, words or phrases, at least two; empty is off."
    )
    top: int = Field(default=1, description="The caption's class must be among this many most likely classes.")

    @model_validator(mode="after")
    def _check(self) -> "LabelConsistencyConfig":
        if len(self.classes) == 1:
            raise ValueError(f"classes must be at least two, got only {self.classes[0]!r}")
        if self.classes and not 1 <= self.top < len(self.classes):
            raise ValueError(f"top must be from 1 to below the number of classes {len(self.classes)}, got {self.top}")
        return self


class ClusterConfig(Section):
    """Rules over clusters of images by their embeddings; with all values null no clusters are made."""

    count: int | None = Field(default=None, ge=1, description="Number of clusters; null makes one for each 50 images.")
    epsilon: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Of two images of a cluster with a cosine above 1 − epsilon one is kept (SemDeDup); null is off.",
    )
    reference: str | None = Field(
        default=None,
        description="Folder of a dataset: only clusters that contain an image of it are kept; null is off.",
    )
    per_cluster: int | None = Field(
        default=None, ge=1, description="Pairs to keep of each cluster, at most; null keeps all."
    )

    @property
    def wanted(self) -> bool:
        """Whether a rule needs the clusters."""
        return (self.epsilon, self.reference, self.per_cluster) != (None, None, None)

    @model_validator(mode="after")
    def _check(self) -> "ClusterConfig":
        if self.count is not None and not self.wanted:
            raise ValueError("count is set, but no rule uses the clusters; set epsilon, reference or per_cluster")
        return self


class BalanceConfig(Section):
    """Balancing of the captions' subjects (MetaCLIP)."""

    limit: int | None = Field(
        default=None,
        ge=1,
        description="Pairs of an entry above which its pairs are subsampled (t of MetaCLIP); null is off.",
    )
    entries: str | None = Field(
        default=None, description="File with one word or phrase a line; null uses the words of the captions."
    )

    @model_validator(mode="after")
    def _check(self) -> "BalanceConfig":
        if self.limit is None and self.entries is not None:
            raise ValueError(f"entries {self.entries!r} needs limit, the number of pairs of an entry; set limit")
        return self


class CurateConfig(Section):
    """The rules of curation; a rule whose threshold is null, 0 or empty is disabled.

    The test split stays as it is: a held-out pair that fails a rule is reported, not dropped.
    """

    min_side: int = Field(default=16, ge=1, description="Image: shortest side, in pixels.")
    max_aspect: float | None = Field(
        default=6.0, ge=1, description="Image: largest aspect ratio, longer over shorter side; null allows any."
    )
    min_contrast: float = Field(
        default=4.0,
        ge=0,
        le=127,
        description="Image: smallest standard deviation of brightness, in grey levels; 0 is off.",
    )
    min_correlation: float = Field(
        default=0.35,
        ge=0,
        le=1,
        description="Image: smallest correlation of neighbouring pixels; white noise has about 0.",
    )
    min_sharpness: float = Field(
        default=0.0,
        ge=0,
        description="Image: smallest variance of the Laplacian at a longer side of 256 pixels; 0 is off.",
    )
    min_entropy: float = Field(
        default=0.0, ge=0, le=8, description="Image: smallest entropy of the brightness histogram, in bits; 0 is off."
    )
    min_colorfulness: float = Field(
        default=0.0,
        ge=0,
        description="Image: smallest colourfulness: 0 is grey, 15 faint, 45 moderate, above 80 strong.",
    )
    min_words: int = Field(
        default=1, ge=0, description="Caption: fewest words, not counting URLs, file names and markup; 0 is off."
    )
    max_words: int | None = Field(default=None, description="Caption: most words; null allows any number.")
    min_characters: int = Field(
        default=2, ge=0, description="Caption: fewest characters, not counting URLs, file names and markup; 0 is off."
    )
    languages: tuple[str, ...] = Field(
        default=(), description="Caption: accepted languages, ISO codes; empty accepts all."
    )
    min_language: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Caption: smallest total probability of the accepted languages, among those written in its "
        "script. A caption too short to recognize its language is kept, and the ledger says so.",
    )
    min_relations: int = Field(
        default=0, ge=0, description="Caption: fewest relations between things, in English; 0 is off."
    )
    blocklist: tuple[str, ...] = Field(
        default=(), description="Caption: files with one forbidden word or phrase a line; empty is off."
    )
    pii: Literal["ignore", "flag", "remove", "drop"] = Field(
        default="ignore",
        description="Caption: what to do about e-mail addresses and telephone numbers: nothing, note them in the "
        "ledger, remove them from the caption, or drop the pair.",
    )
    phash_distance: int = Field(
        default=8, ge=0, le=16, description="Near duplicates: largest Hamming distance of the 64-bit dHash, in bits."
    )
    max_cell_difference: float | None = Field(
        default=16.0,
        ge=0,
        le=255,
        description="Near duplicates: largest difference of any cell of the thumbnail, in grey levels; null drops "
        "exact duplicates only. A training image with the same pixels as a test image is dropped in any case.",
    )
    altered_copies: float | None = Field(
        default=None,
        ge=0.5,
        le=1,
        description="Leaks: smallest similarity of a training image and a mirrored, turned, cropped, framed, "
        "brightened or grey view of a test image; 0.9 finds most, and also finds mirror images that mean something "
        "else, as of arrows. Null is off.",
    )
    dedup_images: bool = Field(
        default=True,
        description="Keep one pair of each image; false keeps all pairs of an image whose captions differ.",
    )
    max_images_per_caption: int | None = Field(
        default=None, ge=1, description="Training pairs to keep of each caption, at most; null keeps all."
    )
    decontaminate: tuple[str, ...] = Field(
        default=(),
        description="Evaluation sets (datasets, or folders of images) whose images are dropped from training.",
    )
    exclude: str | None = Field(
        default=None,
        description="File with uids of taken-down pairs, written by `vlmflow takedown`; they are dropped from every "
        "split. Null excludes nothing.",
    )
    score: ScoreConfig = Field(default_factory=ScoreConfig, description="Filter by image-text score.")
    label_consistency: LabelConsistencyConfig = Field(
        default_factory=LabelConsistencyConfig, description="Filter by zero-shot classes; needs `score.model`."
    )
    clusters: ClusterConfig = Field(
        default_factory=ClusterConfig, description="Rules over clusters of images; needs `score.model`."
    )
    balance: BalanceConfig = Field(default_factory=BalanceConfig, description="Balancing of the captions' subjects.")
    captioner: str | None = Field(
        default=None,
        description="Checkpoint that proposes a caption for each image; the caption with the better score is kept. "
        "Needs `score.model`; null is off.",
    )
    bootstrap: dict[str, Any] = Field(
        default_factory=dict, description="Training of the `bootstrap` encoder: a section `pretrain`."
    )
    engine: Literal["native", "ray"] = Field(
        default="native",
        description="Where the work runs: processes of this machine, or a Ray cluster. The outcome is the same.",
    )
    ray: str | None = Field(
        default=None,
        description="Address of the Ray cluster; null uses RAY_ADDRESS, or a local Ray. `job` runs the step as a "
        "RayJob "
        "with its own cluster, whose pods see the shared volume and the image only.",
    )
    processes: int = Field(default=1, ge=1, description="Worker processes, or Ray workers. The outcome is the same.")
    seed: int = Field(default=0, description="Seed of clusters, balancing and bootstrap; the recipe's seed by default.")

    @property
    def outcome(self) -> dict[str, Any]:
        """The values that the outcome depends on: all but those of engine and processes."""
        return self.model_dump() | {"engine": "", "ray": "", "processes": 0}

    @model_validator(mode="after")
    def _check(self) -> "CurateConfig":
        if self.max_words is not None and self.max_words < max(1, self.min_words):
            raise ValueError(
                f"max_words must be null or at least 1 and at least min_words {self.min_words}, got {self.max_words}"
            )
        if self.ray is not None and self.engine != "ray":
            raise ValueError(f"ray {self.ray!r} has no effect with engine {self.engine}; set engine to ray")
        _check_languages(self.languages)
        needs = {
            "label_consistency.classes": self.label_consistency.classes,
            "clusters": self.clusters.wanted,
            "captioner": self.captioner,
        }
        for name, wanted in needs.items():
            if wanted and self.score.model == "none":
                raise ValueError(
                    f"{name} needs an encoder; set score.model to bootstrap, a folder or a Hugging Face id"
                )
        return self


def _check_languages(languages: tuple[str, ...]) -> None:
    if not languages:
        return
    from components.curate import language  # loads a model

    known = language.supported_languages()
    for code in languages:
        if code not in known:
            raise ValueError(f"languages: {code!r} is not a known ISO code; {nearest(code, known)}")
