"""What the steps of a life left behind, read once."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.evaluation.comparison import Comparison, Examples, compare, read_examples
from vlmflow.evaluation.config import GateConfig
from vlmflow.tracking.registry import read_json

BEFORE = {  # each stage, and the one whose model it starts from
    "contrastive": None,
    "caption": "contrastive",
    "ground": "caption",
    "ocr": "ground",
    "aligned": "ocr",
    "control": "ocr",
}


@dataclass(frozen=True, kw_only=True)
class ArtifactPaths:
    """Where each artifact lies: datasets, checkpoints and scores are folders, the funnel is a file."""

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
    """One capability of one model, as `scores.json` has it; values are shares (an error rate may exceed 1)."""

    value: float
    low: float
    high: float
    n: int
    metric: str
    higher_is_better: bool = True
    extras: dict[str, float] = field(default_factory=dict)
    controls: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def quality(self) -> float:
        """0 for the worst, 1 for the best, whichever way the metric points."""
        inside = min(1.0, max(0.0, self.value))
        return inside if self.higher_is_better else 1 - inside

    @property
    def tied_controls(self) -> list[str]:
        """The controls that this is not shown to be better than."""
        return [kind for kind, control in self.controls.items() if not self.beats(control)]

    def beats(self, control: dict[str, float]) -> bool:
        """Whether the two intervals are apart, and on the right side of each other."""
        return self.low > control["high"] if self.higher_is_better else self.high < control["low"]


class Stage:
    """A training stage: its checkpoint and what that scored.

    Raises:
        ModelError: no checkpoint, or no scores.
    """

    def __init__(self, name: str, model: Path, scores: Path):
        self.name, self.checkpoint, self.scores = name, Checkpoint(model), scores
        self.card = self.checkpoint.card
        content = read_json(scores, "scores.json")
        self.hash: str = content.get("model") or self.checkpoint.hash
        self.capabilities = {name: Capability(**values) for name, values in content["capabilities"].items()}

    @property
    def skipped(self) -> str:
        """Why the stage handed its model on as it came, or ""."""
        return str(self.card.get("skipped", ""))

    @property
    def curve(self) -> list[dict[str, float]]:
        """The training log's lines; a stage that was skipped has none of its own."""
        return [] if self.skipped else self.card.get("curve") or []

    @property
    def box_convention(self) -> str:
        """How the model says a place (see vlmflow.images.boxes)."""
        config = self.checkpoint.path / "processor_config.json"
        content = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        return content.get("box_convention", "pixels")

    @property
    def parameters(self) -> int:
        """Numbers in the weights' files; tied ones are stored, and counted, once."""
        from safetensors import safe_open

        total = 0
        for file in sorted(self.checkpoint.path.glob("*.safetensors")):
            with safe_open(file, framework="numpy") as weights:
                for key in weights.keys():  # noqa: SIM118  a safetensors file is no mapping
                    size = 1
                    for side in weights.get_slice(key).get_shape():
                        size *= side
                    total += size
        return total

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """A few answers with their pictures, as `samples.json` has them; empty where none were taken."""
        path = self.scores / "samples.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    @cached_property
    def examples(self) -> Examples:
        """The score of every example."""
        return read_examples(self.scores)


class RunArtifacts:
    """Everything that the page tells of.

    Args:
        places: where the artifacts lie.
        gate: how two models are compared: as the gate does it.

    Raises:
        DataError, ModelError: an artifact is missing or damaged.
    """

    def __init__(self, places: ArtifactPaths, gate: GateConfig):
        self.paths, self.gate = places, gate
        self.raw, self.curated = Dataset(places.raw, "pairs"), Dataset(places.curated, "pairs")
        self.conversations = Dataset(places.conversations, "conversations")
        self.preferences = Dataset(places.preferences, "preferences")
        self.ledger = read_json(places.ledger, "summary.json")
        self.verdict = read_json(places.verdict, "verdict.json")
        self.version = read_json(places.version, "version.json")
        self.transcript = read_json(places.transcript, "transcript.json")
        self.stages = {n: Stage(n, getattr(places, n), getattr(places, f"{n}_scores")) for n in BEFORE}

    @property
    def datasets(self) -> dict[str, Dataset]:
        """The four datasets by name, in the order in which they are made."""
        return {name: getattr(self, name) for name in ("raw", "curated", "conversations", "preferences")}

    @property
    def trained(self) -> list[Stage]:
        """The stages that trained something."""
        return [stage for stage in self.stages.values() if not stage.skipped]

    @property
    def final(self) -> Stage:
        """The stage whose model goes on: the gate's choice, or the last before it that trained anything."""
        stage = self.stages["ocr" if self.verdict.get("chosen") == "fallback" else "aligned"]
        while stage.skipped and (before := self.previous(stage)):
            stage = before
        return stage

    def previous(self, stage: Stage) -> Stage | None:
        """The stage that this one started from."""
        name = BEFORE[stage.name]
        return self.stages[name] if name else None

    @property
    def capabilities(self) -> list[str]:
        """Every capability that a stage was measured on, in the order of the measuring."""
        return list(dict.fromkeys(name for stage in self.trained for name in stage.capabilities))

    @cached_property
    def changes(self) -> dict[str, dict[str, Comparison]]:
        """Each trained stage against the one it started from, paired on the same examples."""
        found = {}
        for stage in self.trained:
            before = self.previous(stage)
            found[stage.name] = self.against(stage, before) if before else {}
        return found

    def against(self, one: Stage, other: Stage) -> dict[str, Comparison]:
        """`one` compared with `other` on every capability whose examples are the same in both.

        A difference is of mean scores, turned so that more is better.
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
