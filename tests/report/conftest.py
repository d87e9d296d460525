"""A whole life in miniature: real steps on tiny data, with models that have hardly learned anything."""

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
from components.instructions.conversations import NAME, build_conversations
from components.report.artifacts import ArtifactPaths
from models.tiny import build_dual_encoder, grow
from vlmflow.artifacts import checkpoint, dataset
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.evaluation.comparison import compare, read_examples
from vlmflow.evaluation.config import EvaluateConfig
from vlmflow.evaluation.evaluate import evaluate

SIZES = {
    "vision_width": 24,
    "text_width": 24,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "vision_layers": 1,
    "text_layers": 1,
}
EVIL = '<script>alert("caption")</script>'


def places(root: Path) -> ArtifactPaths:
    """Where the fixture puts each artifact."""
    return ArtifactPaths(**{name: root / name for name in ArtifactPaths.__dataclass_fields__})


@pytest.fixture(scope="session")
def life(tmp_path_factory: pytest.TempPathFactory) -> ArtifactPaths:
    """Every artifact of a life that ran to the end; read it, never write to it."""
    where = places(tmp_path_factory.mktemp("life"))
    _data(where)
    _models(where)
    _release(where)
    return where


@pytest.fixture(scope="session")
def hostile() -> str:
    """Text that stands in captions, answers and preferences of the life."""
    return EVIL


@pytest.fixture
def changed(life: ArtifactPaths, tmp_path: Path) -> Callable[..., ArtifactPaths]:
    """The life with JSON files of some artifacts changed: `changed(verdict={"promoted": False})`."""
    files = {"verdict": "verdict.json", "version": "version.json", "transcript": "transcript.json"}

    def change(**updates: dict[str, Any]) -> ArtifactPaths:
        moved = {}
        for name, update in updates.items():
            file = files.get(name, "scores.json" if name.endswith("_scores") else "card.json")
            moved[name] = tmp_path / name
            moved[name].mkdir()
            for source in getattr(life, name).iterdir():
                (moved[name] / source.name).symlink_to(source)
            content = json.loads((moved[name] / file).read_text())
            (moved[name] / file).unlink()
            (moved[name] / file).write_text(json.dumps({**content, **update}))
        return replace(life, **moved)

    return change


def _data(where: ArtifactPaths) -> None:
    rows = list(generate(ScenesConfig(web=40, boxes=12, signs=6, test=12), seed=1))
    for row in (rows[0], rows[-1]):  # hostile text in a web caption and in a test caption
        row["caption"] = f"{row['caption']} {EVIL}"
        row["uid"] = dataset.uid(row["image"], row["caption"])
    notes = {"quarantined": {"rows": {"no such picture": 3}}}
    dataset.write(where.raw, "pairs", rows, step="ingest", notes=notes)
    where.funnel.parent.mkdir(parents=True, exist_ok=True)
    section = CurateConfig(score=ScoreConfig(model="none"))
    curate(where.raw, where.curated, where.ledger, where.funnel, where.raw.parent / "scorer", section)
    build_conversations(where.curated, where.conversations, InstructionConfig())


def _models(where: ArtifactPaths) -> None:
    curated, conversations = Dataset(where.curated), Dataset(where.conversations)
    texts = [m["content"] for row in conversations.rows(["messages"]) for m in row["messages"]]
    curve = [{"step": 10, "loss": 4.0}, {"step": 20, "loss": 3.0}]
    dual, processor = build_dual_encoder(texts, **SIZES)
    common = {"curve": curve, "recipe": {}}
    checkpoint.save(where.contrastive, dual, processor, family="sketch-dual", step="pretrain", parent=None,
                    datasets=[curated.hash], **common)  # fmt: skip
    model, processor = grow(dual, processor, **SIZES)
    parent = where.contrastive
    for name in ("caption", "ground"):
        datasets = [conversations.hash]
        checkpoint.save(getattr(where, name), model, processor, family="sketch", step=name,
                        parent=Checkpoint(parent).hash, datasets=datasets, **common)  # fmt: skip
        parent = getattr(where, name)
        next(model.parameters()).data.mul_(1.01)  # the next stage's weights are others
    checkpoint.copy_unchanged(where.ground, where.ocr, "the recipe has no section 'ocr'")
    preferences = _preferences(where, conversations)
    for name in ("aligned", "control"):
        next(model.parameters()).data.mul_(1.01)
        checkpoint.save(getattr(where, name), model, processor, family="sketch", step=name,
                        parent=Checkpoint(where.ocr).hash, datasets=[preferences.hash], **common)  # fmt: skip
    section = EvaluateConfig(limit=8, questions=4, control_questions=2, resamples=100, samples=2)
    for name in ("contrastive", "caption"):
        evaluate(model=getattr(where, name), pairs=where.curated, conversations=where.conversations,
                 out=getattr(where, f"{name}_scores"), stage=name, section=section)  # fmt: skip
    for name in ("ground", "ocr", "aligned", "control"):  # as if nothing had changed, to save time
        shutil.copytree(where.caption_scores, getattr(where, f"{name}_scores"))
        scores = json.loads((getattr(where, f"{name}_scores") / "scores.json").read_text())
        scores |= {"stage": name, "model": Checkpoint(getattr(where, name)).hash}
        (getattr(where, f"{name}_scores") / "scores.json").write_text(json.dumps(scores))


def _preferences(where: ArtifactPaths, conversations: Dataset) -> Dataset:
    rows = [
        {
            "uid": row["uid"],
            "pair": row["pair"],
            "images": row["images"],
            "prompt": NAME,
            "chosen": "a circle",
            "rejected": f"a star {EVIL}",
            "source": "model",
            "split": "train",
        }
        for row in conversations.rows()
        if row["task"] == "caption"
    ]
    parents = [conversations.hash, Checkpoint(where.ocr).hash]
    return dataset.write(where.preferences, "preferences", rows[:4], step="preferences", parents=parents)


def _release(where: ArtifactPaths) -> None:
    compared = compare(read_examples(where.aligned_scores), read_examples(where.ocr_scores), resamples=100)
    _write(where.verdict / "verdict.json", {
        "chosen": "aligned", "alignment": [asdict(c) for c in compared], "promoted": True, "against": None,
        "capabilities": [], "reasons": ["no champion of 'vlm' yet: the first version takes the place"],
    })  # fmt: skip
    _write(where.version / "version.json", {
        "name": "vlm", "version": "1", "uri": "models:/vlm/1", "alias": "champion", "run_id": "",
        "model_hash": Checkpoint(where.aligned).hash,
    })  # fmt: skip
    uid = next(row["uid"] for row in Dataset(where.curated).rows(["uid", "split"]) if row["split"] == "test")
    message = {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "Describe the picture."}]}
    answer = {"choices": [{"message": {"content": f"a red circle {EVIL}"}}]}
    _write(where.transcript / "transcript.json", {
        "model": "vlm", "version": "1", "image": uid,
        "exchanges": [{
            "protocol": "OpenAI chat", "path": "/openai/v1/chat/completions", "request": {"messages": [message]},
            "status": 200, "response": answer, "latency_ms": 31.4,
        }],
    })  # fmt: skip


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
