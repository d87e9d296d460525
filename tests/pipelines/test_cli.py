"""Commands that only read or write files: `zoo`, `explain`, `export`."""

from pathlib import Path

import numpy as np

from models.zoo import ZOO
from tests.conftest import vlmflow
from vlmflow.artifacts.ledger import Ledger


def test_zoo_lists_every_family(tmp_path: Path) -> None:
    done = vlmflow(tmp_path, "zoo")
    assert done.returncode == 0 and all(name in done.stdout for name in ZOO)


def test_explain_prints_the_verdict_on_a_pair(tmp_path: Path) -> None:
    ledger = Ledger(["abc", "def"], ["train", "train"])
    ledger.drop("blank", np.array([True, False]), np.array([1.5, 80.0]), 4.0)
    ledger.write(tmp_path / "latest" / "curate" / "ledger", {})
    done = vlmflow(tmp_path, "explain", "abc")
    assert done.returncode == 0 and "dropped by blank" in done.stdout and "1.5, threshold 4" in done.stdout
    missing = vlmflow(tmp_path, "explain", "xyz", "--in", str(tmp_path / "latest"))
    assert missing.returncode == 2 and "xyz: no such pair" in missing.stderr


def test_exported_shards_can_be_ingested(tmp_path: Path) -> None:
    from components.ingest.config import IngestConfig, ScenesConfig
    from components.ingest.ingestion import ingest
    from vlmflow.artifacts.dataset import Dataset

    pairs = ingest(IngestConfig(scenes=ScenesConfig(web=12, boxes=0, signs=0, test=2)), tmp_path / "pairs")
    done = vlmflow(tmp_path, "export", str(tmp_path / "pairs"), str(tmp_path / "shards"), "--rows-per-shard", "5")
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "shards").glob("*.tar")]) == -(-len(pairs) // 5)
    back = ingest(IngestConfig(source="webdataset", path=str(tmp_path / "shards")), tmp_path / "back")
    notes = Dataset(tmp_path / "back").card.notes
    left = sum(sum(kinds.values()) for kinds in notes["quarantined"].values())
    found = {row["uid"] for row in back.rows(["uid"])}
    assert found <= {row["uid"] for row in pairs.rows(["uid"])} and len(back) + left == len(pairs)
    missing = vlmflow(tmp_path, "export", str(tmp_path / "nowhere"), str(tmp_path / "shards"))
    assert missing.returncode == 2 and "not a dataset folder" in missing.stderr
