"""A complete run in miniature: real steps on tiny data, with models that are hardly trained."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from components.curate.config import CurateConfig, ScoreConfig
from components.curate.curation import curate
from components.ingest.config import ScenesConfig
from components.ingest.synthetic_scenes import generate
from components.instructions.config import InstructionConfig
from components.instructions.conversations import build_conversations
from components.report.artifacts import ArtifactPaths
from models.tiny.build import build_dual_encoder, from_dual_encoder
from vlmflow.artifacts import checkpoint, dataset
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.evaluation.comparison import compare
from vlmflow.evaluation.config import EvaluateConfig
from vlmflow.evaluation.evaluate import evaluate
from vlmflow.evaluation.scores import read_examples
from vlmflow.inference.prompts import NAME_OBJECTS

SIZES = {
    "vision_hidden_size": 24,
    "text_hidden_size": 24,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "vision_layers": 1,
    "text_layers": 1,
}
HOSTILE = '<script>alert("caption")</script>'


def artifact_paths(root: Path) -> ArtifactPaths:
    """Paths of the fixture's artifacts."""
    return ArtifactPaths(**{name: root / name for name in ArtifactPaths.__dataclass_fields__})


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> ArtifactPaths:
    """All artifacts of a completed run; tests must not write to them."""
    paths = artifact_paths(tmp_path_factory.mktemp("run"))
    _data(paths)
    _models(paths)
    _release(paths)
    return paths


@pytest.fixture(scope="session")
def hostile() -> str:
    """Text in captions, answers and preferences of the run."""
    return HOSTILE


@pytest.fixture
def changed(run: ArtifactPaths, tmp_path: Path) -> Callable[..., ArtifactPaths]:
    """The run with changes to the JSON files of some artifacts: `changed(verdict={"promoted": False})`."""
    files = {"verdict": "verdict.json", "version": "version.json", "transcript": "transcript.json"}

    def change(**updates: dict[str, Any]) -> ArtifactPaths:
        moved = {}
        for name, update in updates.items():
            file = files.get(name, "scores.json" if name.endswith("_scores") else "card.json")
            moved[name] = tmp_path / name
            moved[name].mkdir()
            for source in getattr(run, name).iterdir():
                (moved[name] / source.name).symlink_to(source)
            content = json.loads((moved[name] / file).read_text())
            (moved[name] / file).unlink()
            (moved[name] / file).write_text(json.dumps({**content, **update}))
        return replace(run, **moved)

    return change


def _data(paths: ArtifactPaths) -> None:
    rows = list(generate(ScenesConfig(web=40, boxes=12, signs=6, test=12), seed=1))
    for row in (rows[0], rows[-1]):  # hostile text in a web caption and in a test caption
        row["caption"] = f"{row['caption']} {HOSTILE}"
        row["uid"] = dataset.uid(row["image"], row["caption"])
    notes = {"quarantined": {"rows": {"no such picture": 3}}}
    dataset.write(paths.raw, "pairs", rows, step="ingest", notes=notes)
    paths.funnel.parent.mkdir(parents=True, exist_ok=True)
    section = CurateConfig(score=ScoreConfig(model="none"))
    curate(paths.raw, paths.curated, paths.ledger, paths.funnel, paths.raw.parent / "scorer", section)
    build_conversations(paths.curated, paths.conversations, InstructionConfig())


def _models(paths: ArtifactPaths) -> None:
    curated, conversations = Dataset(paths.curated), Dataset(paths.conversations)
    texts = [m["content"] for row in conversations.rows(["messages"]) for m in row["messages"]]
    curve = [{"step": 10, "loss": 4.0}, {"step": 20, "loss": 3.0}]
    dual, processor = build_dual_encoder(texts, **SIZES)
    common = {"curve": curve, "recipe": {}}
    checkpoint.save(paths.contrastive, dual, processor, family="tiny-dual-encoder", step="pretrain", parent=None,
                    datasets=[curated.hash], **common)  # fmt: skip
    model, processor = from_dual_encoder(dual, processor, **SIZES)
    parent = paths.contrastive
    for name in ("caption", "ground"):
        datasets = [conversations.hash]
        checkpoint.save(getattr(paths, name), model, processor, family="tiny-vlm", step=name,
                        parent=Checkpoint(parent).hash, datasets=datasets, **common)  # fmt: skip
        parent = getattr(paths, name)
        next(model.parameters()).data.mul_(1.01)  # the next stage has different weights
    checkpoint.copy_unchanged(paths.ground, paths.ocr, "the recipe has no section 'ocr'")
    preferences = _preferences(paths, conversations)
    for name in ("aligned", "control"):
        next(model.parameters()).data.mul_(1.01)
        checkpoint.save(getattr(paths, name), model, processor, family="tiny-vlm", step=name,
                        parent=Checkpoint(paths.ocr).hash, datasets=[preferences.hash], **common)  # fmt: skip
    section = EvaluateConfig(limit=8, questions=4, control_questions=2, resamples=100, samples=2)
    for name in ("contrastive", "caption"):
        evaluate(model=getattr(paths, name), pairs=paths.curated, conversations=paths.conversations,
                 out=getattr(paths, f"{name}_scores"), stage=name, section=section)  # fmt: skip
    for name in ("ground", "ocr", "aligned", "control"):  # reuse the scores to save time
        shutil.copytree(paths.caption_scores, getattr(paths, f"{name}_scores"))
        scores = json.loads((getattr(paths, f"{name}_scores") / "scores.json").read_text())
        scores |= {"stage": name, "model": Checkpoint(getattr(paths, name)).hash}
        (getattr(paths, f"{name}_scores") / "scores.json").write_text(json.dumps(scores))


def _preferences(paths: ArtifactPaths, conversations: Dataset) -> Dataset:
    rows = [
        {
            "uid": row["uid"],
            "pair": row["pair"],
            "images": row["images"],
            "prompt": NAME_OBJECTS,
            "chosen": "a circle",
            "rejected": f"a star {HOSTILE}",
            "source": "model",
            "split": "train",
        }
        for row in conversations.rows()
        if row["task"] == "caption"
    ]
    parents = [conversations.hash, Checkpoint(paths.ocr).hash]
    return dataset.write(paths.preferences, "preferences", rows[:4], step="preferences", parents=parents)


def _release(paths: ArtifactPaths) -> None:
    compared = compare(read_examples(paths.aligned_scores), read_examples(paths.ocr_scores), resamples=100)
    _write(paths.verdict / "verdict.json", {
        "chosen": "aligned", "alignment": [asdict(c) for c in compared], "promoted": True, "against": None,
        "capabilities": [], "reasons": ["'vlm' has no champion yet: the first version is promoted"],
    })  # fmt: skip
    _write(paths.version / "version.json", {
        "name": "vlm", "version": "1", "uri": "models:/vlm/1", "alias": "champion", "run_id": "",
        "model_hash": Checkpoint(paths.aligned).hash,
    })  # fmt: skip
    uid = next(row["uid"] for row in Dataset(paths.curated).rows(["uid", "split"]) if row["split"] == "test")
    message = {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "Describe the picture."}]}
    answer = {"choices": [{"message": {"content": f"a red circle {HOSTILE}"}}]}
    _write(paths.transcript / "transcript.json", {
        "model": "vlm", "version": "1", "image": uid,
        "exchanges": [{
            "protocol": "OpenAI chat", "path": "/openai/v1/chat/completions", "request": {"messages": [message]},
            "status": 200, "response": answer, "latency_ms": 31.4,
        }],
    })  # fmt: skip


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
