"""The artifacts of an end-to-end run, read once for the report."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.json_file import read_json
from vlmflow.evaluation import controls
from vlmflow.evaluation.comparison import Comparison, compare
from vlmflow.evaluation.config import GateConfig
from vlmflow.evaluation.scores import Examples, describe_examples, read_examples, read_samples, read_scores
from vlmflow.runtime import left_out

PREVIOUS = {  # training stage → the stage whose model it starts from
    "contrastive": None,
    "caption": "contrastive",
    "ground": "caption",
    "ocr": "ground",
    "aligned": "ocr",
    "control": "ocr",
}


@dataclass(frozen=True, kw_only=True)
class ArtifactPaths:
    """Path of each artifact: a folder for datasets, checkpoints and scores, a file for the funnel."""

    raw: Path
    curated: Path
    conversations: Path
    preferences: Path
    ledger: Path
    funnel: Path
    contrastive: Path
    contrastive_scores: Path
    caption: Path
    caption_scores: Path
    ground: Path
    ground_scores: Path
    ocr: Path
    ocr_scores: Path
    aligned: Path
    aligned_scores: Path
    control: Path
    control_scores: Path
    verdict: Path
    version: Path
    transcript: Path


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One capability of one model, as in `scores.json`; values are shares (an error rate may exceed 1)."""

    value: float
    low: float
    high: float
    n: int
    metric: str
    available: int = 0  # test examples of which the n are a sample
    higher_is_better: bool = True
    needs_image: bool = True
    secondary: dict[str, dict[str, float]] = field(default_factory=dict)  # further metrics: value, low, high
    extras: dict[str, float] = field(default_factory=dict)
    controls: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def examples(self) -> str:
        """The number of examples, and of how many they are a sample."""
        return describe_examples(vars(self))

    @property
    def quality(self) -> float:
        """The value clipped to 0–1 and oriented so that 1 is best."""
        clipped = min(1.0, max(0.0, self.value))
        return clipped if self.higher_is_better else 1 - clipped

    @property
    def tied_controls(self) -> list[str]:
        """The controls that the value is not significantly better than."""
        return controls.tied_controls(vars(self)) if self.controls else []


class Stage:
    """A training stage: its checkpoint and scores.

    Raises:
        ModelError: the checkpoint or the scores are missing.
    """

    def __init__(self, name: str, model: Path, scores: Path):
        self.name, self.checkpoint, self.scores = name, Checkpoint(model), scores
        self.card = self.checkpoint.card
        content = read_scores(scores)
        self.hash: str = content.get("model") or self.checkpoint.hash
        self.not_measured: dict[str, str] = content.get("not_measured", {})
        self.seed = content.get("seed", 0)
        self.capabilities = {name: Capability(**values) for name, values in content["capabilities"].items()}

    @property
    def skipped(self) -> str:
        """Why the stage was skipped and passed its input model on, or ""."""
        return str(self.card.get("skipped", ""))

    @property
    def curve(self) -> list[dict[str, float]]:
        """Points of the training log (step, loss); empty for a skipped stage."""
        return [] if self.skipped else self.card.get("curve") or []

    @property
    def box_convention(self) -> str:
        """How the model writes boxes as text (see vlmflow.images.boxes)."""
        config = self.checkpoint.path / "processor_config.json"
        content = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        return content.get("box_convention", "pixels")

    @property
    def parameters(self) -> int:
        """Number of parameters in the weight files; tied weights are stored and counted once."""
        from safetensors import safe_open

        total = 0
        for file in sorted(self.checkpoint.path.glob("*.safetensors")):
            with safe_open(file, framework="numpy") as weights:
                for key in weights.keys():  # noqa: SIM118  a safetensors file is not a mapping
                    size = 1
                    for side in weights.get_slice(key).get_shape():
                        size *= side
                    total += size
        return total

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """A few answers with their images, as in `samples.json`; empty if there are none."""
        return read_samples(self.scores)

    @cached_property
    def examples(self) -> Examples:
        """Capability → example → score."""
        return read_examples(self.scores)


class RunArtifacts:
    """All artifacts that the report shows.

    Args:
        paths: the artifacts' paths.
        gate: settings of the comparison of two models, as in the gate.

    Raises:
        DataError, ModelError: an artifact is missing or damaged.
    """

    def __init__(self, paths: ArtifactPaths, gate: GateConfig):
        self.paths, self.gate = paths, gate
        self.raw, self.curated = Dataset(paths.raw, "pairs"), Dataset(paths.curated, "pairs")
        self.conversations = Dataset(paths.conversations, "conversations")
        self.preferences = Dataset(paths.preferences, "preferences")
        self.ledger = read_json(paths.ledger, "summary.json")
        self.verdict = _read_optional(paths.verdict, "verdict.json")
        self.version = _read_optional(paths.version, "version.json")
        self.transcript = _read_optional(paths.transcript, "transcript.json")
        self.stages = {n: Stage(n, getattr(paths, n), getattr(paths, f"{n}_scores")) for n in PREVIOUS}

    @property
    def datasets(self) -> dict[str, Dataset]:
        """The four datasets by name, in the order of their creation."""
        return {name: getattr(self, name) for name in ("raw", "curated", "conversations", "preferences")}

    @property
    def trained(self) -> list[Stage]:
        """The stages that were not skipped."""
        return [stage for stage in self.stages.values() if not stage.skipped]

    @property
    def final(self) -> Stage:
        """The stage of the registered model: the gate's choice, or the last stage before it that was not skipped."""
        stage = self.stages["ocr" if self.verdict.get("chosen") == "fallback" else "aligned"]
        while stage.skipped and (before := self.previous(stage)):
            stage = before
        return stage

    def previous(self, stage: Stage) -> Stage | None:
        """The stage whose model this stage started from; None for the first one."""
        name = PREVIOUS[stage.name]
        return self.stages[name] if name else None

    @property
    def capabilities(self) -> list[str]:
        """All capabilities that were measured, in the order of measurement."""
        return list(dict.fromkeys(name for stage in self.trained for name in stage.capabilities))

    @cached_property
    def changes(self) -> dict[str, dict[str, Comparison]]:
        """Paired comparison of each trained stage with the one it started from: stage → capability → comparison."""
        found = {}
        for stage in self.trained:
            before = self.previous(stage)
            found[stage.name] = self.against(stage, before) if before else {}
        return found

    def against(self, one: Stage, other: Stage) -> dict[str, Comparison]:
        """Compare `one` with `other` on each capability that both were measured on with the same examples.

        A difference is one of mean scores; positive means that `one` is better.
        """
        mine, theirs = one.examples, other.examples
        paired = {c: theirs[c] for c in theirs if c not in mine or mine[c].keys() == theirs[c].keys()}
        compared = compare(
            mine,
            paired,
            confidence=self.gate.confidence,
            resamples=self.gate.resamples,
            min_examples=self.gate.min_examples,
            seed=self.gate.seed,
        )
        return {comparison.capability: comparison for comparison in compared}


def _read_optional(folder: Path, name: str) -> dict[str, Any]:
    """Read an artifact of the release; empty if the step that writes it was left out."""
    return {} if left_out.reason(folder) else read_json(folder, name)
