"""The section `ingest` of a recipe."""

from typing import Literal

from pydantic import Field, model_validator

from components.ingest.columns import ColumnsConfig
from vlmflow.config.section import Section

SourceName = Literal["scenes", "folder", "captions", "parquet", "webdataset", "datasets", "coco", "refcoco", "voc",
                     "yolo", "sroie", "funsd", "conversations", "preferences"]  # fmt: skip


class ScenesConfig(Section):
    """The synthetic source `scenes`: the number of images of each kind, and the noise of the web rows.

    `shuffled`, `duplicates`, `junk` and `bad` are fractions of the web rows and sum to at most 1.
    """

    web: int = Field(default=16000, ge=0, description="Training pairs of an image and a caption, noisy as on the web.")
    boxes: int = Field(
        default=6000, ge=0, description="Training images with referring expressions and boxes, no caption."
    )
    signs: int = Field(
        default=6000, ge=0, description="Training images of plates with lines of random letters and boxes."
    )
    classes: int = Field(
        default=0, ge=0, description="Training images of one object with its class as label, no caption."
    )
    test: int = Field(default=500, ge=0, description="Scenes of the test split: clean, with all annotations.")
    shuffled: float = Field(default=0.30, ge=0, le=1, description="Fraction of web rows with another image's caption.")
    duplicates: float = Field(default=0.10, ge=0, le=1, description="Fraction of web rows that repeat an earlier row.")
    junk: float = Field(
        default=0.10, ge=0, le=1, description="Fraction of web rows with a junk caption, such as a file name."
    )
    bad: float = Field(default=0.08, ge=0, le=1, description="Fraction of web rows with a broken or useless image.")

    @model_validator(mode="after")
    def _check_fractions(self) -> "ScenesConfig":
        total = self.shuffled + self.duplicates + self.junk + self.bad
        if self.web and total > 1:
            raise ValueError(
                f"shuffled, duplicates, junk and bad are fractions of the web rows and must sum to at most 1, "
                f"got {total:g}"
            )
        return self


class IngestConfig(Section):
    """Where the pairs come from, and how they are split and stored."""

    source: SourceName = Field(
        default="scenes",
        description="Format of the source. `scenes` draws synthetic images. `conversations` and `preferences` give "
        "rows of the dataset schema of that name, all others give image-text pairs.",
    )
    path: str = Field(
        default="",
        description="File or folder, local or any URL that fsspec opens (`s3://…`); unused with source `scenes`.",
    )
    index: str = Field(
        default="",
        description="Index within the source, depending on `source`: annotation file, configuration or metadata; "
        "empty uses the only one there is.",
    )
    columns: ColumnsConfig = Field(
        default_factory=ColumnsConfig, description="Columns of a source that has no format of its own."
    )
    names: dict[str, str] = Field(
        default_factory=dict,
        description="Words for labels of the source: `{WBC: white blood cell}` renames the phrases, categories and "
        "labels that are exactly `WBC`. A name that the source does not have is an error.",
    )
    limit: int | None = Field(
        default=None, ge=1, description="Number of pairs to read, from the start; null reads all."
    )
    holdout: float = Field(
        default=0.1, ge=0, lt=1, description="Fraction of images for the test split, if the source defines no split."
    )
    licence: str = Field(default="", description="Licence of rows that have none of their own.")
    max_side: int | None = Field(
        default=None,
        ge=16,
        description="Longest side of an image, in pixels; larger images are stored as a smaller JPEG and their boxes "
        "are scaled (pixel values in texts are not). Null keeps every size.",
    )
    max_bytes: int | None = Field(
        default=None,
        ge=4096,
        description="Largest image file, in bytes; larger files are stored as a smaller JPEG. Null keeps every size.",
    )
    preference_source: Literal["human", "rule", "model"] = Field(
        default="human", description="Who judged the preferences, for rows that do not name it."
    )
    max_quarantined: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Fraction of the rows that may be unusable; more stop the run. Rows that were taken down, or that "
        "the source itself lists as not downloaded, do not count. A source of less than 100 rows may lose as many rows "
        "as one of 100; 0 allows none.",
    )
    addresses: tuple[str, ...] = Field(
        default=(),
        description="Beginnings of addresses that rows may name for their images, such as `s3://bucket/images/`; they "
        "are read with the credentials of this machine. Addresses below `path` are always allowed. Rows with any other "
        "address are quarantined.",
    )
    outside_files: Literal["read", "refuse"] | None = Field(
        default=None,
        description="What to do with rows that name local files outside the folder of the source (`../a.png`, "
        "`/data/a.png`): read them with a warning, or quarantine the rows. Null refuses them in a pod of Kubernetes, "
        "and reads them elsewhere.",
    )
    exclude: str | None = Field(
        default=None,
        description="File with uids of taken-down pairs, written by `vlmflow takedown`; their rows are quarantined. "
        "Null excludes nothing.",
    )
    scenes: ScenesConfig = Field(default_factory=ScenesConfig, description="The synthetic source `scenes`.")
    seed: int = Field(
        default=0, description="Seed of the split and of the synthetic scenes; the recipe's seed by default."
    )

    @model_validator(mode="after")
    def _check_path(self) -> "IngestConfig":
        if self.source != "scenes" and not self.path:
            raise ValueError(f"source {self.source!r} needs a path; set ingest.path")
        if self.names and self.source in ("scenes", "conversations", "preferences"):
            raise ValueError(f"names: source {self.source!r} has no labels to rename; remove names")
        if empty := next((name for name, words in self.names.items() if not words.strip()), None):
            raise ValueError(f"names: {empty!r} has no words; give some, or remove it")
        return self
