"""A small history on disk and in a registry, walked up and down."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from components import dataset
from components.checkpoint import Checkpoint
from components.dataset import Dataset
from components.errors import DataError, ModelError
from components.register.registration import Registration, register
from pipelines.lineage import lineage


@dataclass
class Run:
    """runs/1 with raw → curated → conversations, and pretrain → align, which was registered."""

    home: Path
    kept: str
    dropped: str
    tested: str

    def __getitem__(self, place: str) -> Path:
        return self.home / "1" / place


def pair(colour: str, split: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
    constant = {"width": 32, "height": 32, "source": "test", "licence": "none", "label": "", "regions": [], "lines": []}
    return {
        "uid": dataset.uid(buffer.getvalue()),
        "image": buffer.getvalue(),
        "caption": colour,
        "split": split,
        **constant,
    }


def model(folder: Path, step: str, parent: str | None, datasets: list[str]) -> Checkpoint:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"made by": step}))
    card = {"family": "sketch", "step": step, "parent": parent, "datasets": datasets}
    (folder / "card.json").write_text(json.dumps(card))
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    home = tmp_path_factory.mktemp("runs")
    rows = [pair("red", "train"), pair("blue", "train"), pair("green", "test")]
    run = Run(home, *(row["uid"] for row in rows))
    raw = dataset.write(run["ingest/raw"], "pairs", rows, step="ingest")
    curated = dataset.write(run["curate/curated"], "pairs", [rows[0], rows[2]], step="curate", parents=[raw.hash])
    turns = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "red"}]
    told = [
        {
            "uid": "0" * 32,
            "pair": row["uid"],
            "images": [row["image"]],
            "messages": turns,
            "task": "vqa",
            "split": row["split"],
        }
        for row in (rows[0], rows[2])
    ]
    tasks = dataset.write(run["tasks/out"], "conversations", told, step="tasks", parents=[curated.hash])
    ledger = run["curate/ledger"]
    ledger.mkdir()
    verdicts = [(run.kept, "kept", "", 0.0), (run.dropped, "dropped", "blank", 1.5), (run.tested, "kept", "", 0.0)]
    columns = dict(zip(("uid", "verdict", "rule", "value"), map(list, zip(*verdicts, strict=True)), strict=True))
    pq.write_table(pa.table({**columns, "threshold": [0.0, 2.0, 0.0]}), ledger / "ledger.parquet")
    (ledger / "summary.json").write_text(json.dumps({"rows_in": 3, "kept": 2, "dropped": {"blank": 1}}))
    pretrained = model(run["pretrain/model"], "pretrain", None, [curated.hash])
    aligned = model(run["gate/chosen"], "align", pretrained.hash, [tasks.hash])

    (run["gate/scores"]).mkdir()
    (run["gate/scores/scores.json"]).write_text(json.dumps({"model": aligned.hash, "data": []}))
    (run["gate/verdict"]).mkdir()
    (run["gate/verdict/verdict.json"]).write_text(json.dumps({"promoted": True, "against": None, "reasons": []}))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("VLMFLOW_HOME", str(home))
        chosen, scores, verdict = (run[f"gate/{part}"] for part in ("chosen", "scores", "verdict"))
        register(chosen, scores, verdict, run["register/version"], "seed: 0\n", Registration())
        yield run


def titles(tree: Any) -> str:
    console = Console(width=400, file=io.StringIO())
    console.print(tree)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("reference", ["models:/vlm@champion", "1/gate/chosen", "1"])
def test_a_model_is_traced_to_its_raw_pairs(run: Run, reference: str) -> None:
    tree, node = lineage(reference if ":" in reference else str(run.home / reference))
    assert node["hash"] == Checkpoint(run["gate/chosen"]).hash and node["versions"] == ["models:/vlm/1 (champion)"]
    steps = [node["step"]]
    pretrain, tasks = node["from"]
    steps += [pretrain["step"], tasks["step"], pretrain["from"][0]["step"], tasks["from"][0]["from"][0]["step"]]
    assert steps == ["align", "pretrain", "tasks", "curate", "ingest"]
    assert pretrain["from"][0]["ledger"]["dropped"] == {"blank": 1}
    assert "ledger: 3 in, 2 kept" in titles(tree)


def test_a_dataset_is_traced(run: Run) -> None:
    _, node = lineage(str(run["tasks/out"]))
    assert [node["step"], node["from"][0]["step"]] == ["tasks", "curate"]


def test_a_training_pair_is_found_in_every_model_that_learned_from_it(run: Run) -> None:
    tree, found = lineage(run.kept)
    assert [verdict["verdict"] for verdict in found["verdicts"]] == ["kept"]
    assert len(found["datasets"]) == 3 and all(entry["split"] == ["train"] for entry in found["datasets"])
    assert {entry["hash"] for entry in found["learned"]} == {
        Checkpoint(run["pretrain/model"]).hash,
        Checkpoint(run["gate/chosen"]).hash,
    }
    assert "models:/vlm/1 (champion)" in titles(tree)
    assert "(train)" in titles(tree)


def test_a_dropped_pair_has_its_reason_and_taught_nothing(run: Run) -> None:
    tree, found = lineage(run.dropped)
    assert found["learned"] == [] and [entry["hash"] for entry in found["datasets"]] == [
        Dataset(run["ingest/raw"]).hash
    ]
    assert "dropped by blank: 1.5 against 2.0" in titles(tree)


def test_a_test_pair_taught_nothing(run: Run) -> None:
    _, found = lineage(run.tested)
    assert len(found["datasets"]) == 3 and found["learned"] == []


def test_a_wrong_reference_says_so(run: Run) -> None:
    with pytest.raises(DataError, match="no dataset under .* holds this pair"):
        lineage("f" * 32)
    with pytest.raises(ModelError, match="no artifact, run or uid"):
        lineage("nothing")
    with pytest.raises(ModelError, match="registered: models:/vlm/1"):
        lineage("models:/vlm/7")
