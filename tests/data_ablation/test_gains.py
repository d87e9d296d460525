"""Data ablation: nested training sets from one ledger, and paired gains with the correct sign."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.ablate.ablation import survivors_after_stage
from components.curate.config import CurateConfig
from components.curate.curation import curate
from components.data_ablation.config import DataAblationConfig
from components.data_ablation.gains import write_gains
from components.ingest.config import IngestConfig, ScenesConfig
from components.ingest.ingestion import ingest
from tests.conftest import vlmflow
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.ledger import RULES, STAGES
from vlmflow.errors import DataError


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated")
    raw = ingest(IngestConfig(scenes=ScenesConfig(web=300, boxes=0, signs=0, test=20)), folder / "raw")
    curate(raw.path, folder / "curated", folder / "ledger", folder / "funnel.html", folder / "scorer", CurateConfig())
    return folder


def test_each_stage_keeps_the_pairs_that_its_rules_did_not_drop(curated: Path, tmp_path: Path) -> None:
    verdicts = pq.read_table(curated / "ledger" / "ledger.parquet").to_pylist()
    left = [
        {
            row["uid"]
            for row in survivors_after_stage(stage, curated / "raw", curated / "ledger", tmp_path / stage).rows(["uid"])
        }
        for stage in STAGES
    ]
    assert all(after <= before for before, after in pairwise(left))
    for stage, uids in zip(STAGES, left, strict=True):
        gone = RULES[: RULES.index(STAGES[stage]) + 1]
        assert uids == {v["uid"] for v in verdicts if v["split"] == "train" and v["rule"] not in gone}
    assert len(left[0]) > len(left[1]) > len(left[2]) > len(left[3])  # the scenes contain bad pairs of each kind
    kept = {row["uid"] for row in Dataset(curated / "curated").rows(["uid", "split"]) if row["split"] == "train"}
    assert left[-1] == kept


def test_the_ledger_of_another_dataset_is_rejected(curated: Path, tmp_path: Path) -> None:
    other = ingest(IngestConfig(scenes=ScenesConfig(web=300, boxes=0, signs=0, test=20), seed=1), tmp_path / "other")
    with pytest.raises(DataError, match=r"pass the ledger of this dataset"):
        survivors_after_stage("raw", other.path, curated / "ledger", tmp_path / "out")
    with pytest.raises(DataError, match="unknown stage 'scores'; choose from raw, images"):
        survivors_after_stage("scores", curated / "raw", curated / "ledger", tmp_path / "out")


def _scores(folder: Path, right: np.ndarray) -> Path:
    folder.mkdir()
    value = {"value": float(right.mean()), "low": 0.0, "high": 1.0, "metric": "R@1"}
    (folder / "scores.json").write_text(json.dumps({"capabilities": {"retrieval": value}}))
    rows = [{"capability": "retrieval", "example": str(i), "score": float(s)} for i, s in enumerate(right)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "examples.parquet")
    return folder


def test_gains_are_over_raw_and_over_the_previous_stage(curated: Path, tmp_path: Path) -> None:
    shares = dict(zip(STAGES, (20, 20, 30, 30, 60, 55), strict=True))
    scores = {stage: _scores(tmp_path / stage, np.arange(100) < share) for stage, share in shares.items()}
    section = DataAblationConfig(capabilities=("retrieval",))
    found = write_gains(scores, curated / "ledger", tmp_path / "gains.json", tmp_path / "page.html", section)
    stages = {stage["stage"]: stage for stage in found["stages"]}
    gain = stages["score"]["gains"]["over_raw"]["retrieval"]
    assert gain["difference"] == pytest.approx(0.4) and gain["low"] > 0.3 and gain["verdict"] == "better"
    assert stages["diversity"]["gains"]["over_previous_stage"]["retrieval"]["verdict"] == "worse"
    assert stages["images"]["gains"]["over_raw"]["retrieval"]["verdict"] == "same"
    dropped = json.loads((curated / "ledger" / "summary.json").read_text())["dropped"]
    assert sum(stage["dropped"] for stage in stages.values()) == sum(dropped.values())
    page = (tmp_path / "page.html").read_text()
    assert "+0.400" in page and "<svg" in page and "http-equiv" not in page
    with pytest.raises(DataError, match="'zero-shot' was not evaluated"):
        write_gains(scores, curated / "ledger", tmp_path / "r.json", tmp_path / "p.html", DataAblationConfig())


def test_the_whole_pipeline(tmp_path: Path) -> None:
    small = ["ingest.scenes.web=160", "ingest.scenes.test=30", "curate.score.model=none", "curate.clusters=null",
             "pretrain.training.max_steps=2", "pretrain.training.batch_size=16",
             "pretrain.training.processes=1", "evaluate.processes=1"]  # fmt: skip
    done = vlmflow(tmp_path, "data-ablation", *[part for value in small for part in ("--set", value)])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "latest" / "data_ablation" / "gains").read_text())
    assert [stage["stage"] for stage in found["stages"]] == list(STAGES)
    assert all(set(stage["capabilities"]) == {"retrieval", "zero-shot"} for stage in found["stages"])
    assert "diversity" in done.stdout
