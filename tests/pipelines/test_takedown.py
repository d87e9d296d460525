"""Takedown of a pair: everything that used it is listed, nothing else is, and its image cannot be ingested again."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.curate.config import CurateConfig
from components.curate.curation import curate
from components.deploy.deployment import DeployConfig, deploy
from components.deploy.smoke_test import local_predictor
from components.ingest.config import IngestConfig
from components.ingest.ingestion import ingest
from components.register.registration import register
from models.tiny.build import build_dual_encoder
from pipelines.lineage.takedown import takedown
from pipelines.lineage.trace import lineage
from tests.conftest import vlmflow
from vlmflow.artifacts import checkpoint, dataset, exclusion_list
from vlmflow.artifacts.dataset import Dataset
from vlmflow.errors import DataError
from vlmflow.tracking.registry import RegistryConfig

TAKEN, SAME, OTHER, TESTED = range(4)  # rows: the pair, its image with another caption, another pair, a test pair


def image(seed: int) -> bytes:
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(patches).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def pair(content: bytes, caption: str, split: str = "train") -> dict[str, Any]:
    row = {"uid": dataset.uid(content, caption), "image": content, "caption": caption, "split": split, "label": ""}
    return {**row, "width": 64, "height": 64, "source": "test", "licence": "", "regions": [], "lines": []}


ROWS = [
    pair(image(1), "an image to remove"),
    pair(image(1), "the same image, another caption"),
    pair(image(2), "another image"),
    pair(image(3), "an image of the test split", "test"),
    pair(image(4), "an image that occurs twice"),
    pair(image(4), "an image that occurs twice"),
]


@dataclass
class TwoRuns:
    """Two runs with the same test set, deployed; only run `1` has the pair."""

    home: Path
    ids: dict[str, str]  # `1 pretrain` → id of the artifact


def run_curation(raw: Path, out: Path, **section: Any) -> Dataset:
    curated, ledger, funnel, scorer = (out / name for name in ("curated", "ledger", "funnel.html", "scorer"))
    return curate(raw, curated, ledger, funnel, scorer, CurateConfig(dedup_images=False, **section))


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRuns]:
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("VLMFLOW_HOME", str(home))
        ids = {}
        for name, rows in (("1", ROWS), ("2", ROWS[OTHER:])):
            run = home / name
            raw = dataset.write(run / "ingest" / "raw", "pairs", rows, step="ingest")
            curated = run_curation(raw.path, run / "curate")
            parts = build_dual_encoder([row["caption"] for row in rows] * 9, vision_layers=1, text_layers=1)
            facts: dict[str, Any] = {"family": "tiny-dual-encoder", "datasets": [curated.hash]}
            pretrained = checkpoint.save(run / "pretrain" / "model", *parts, step="pretrain", parent=None, **facts)
            parts[0].logit_scale.data += 1  # a change of the weights, as by training
            aligned = checkpoint.save(run / "align" / "model", *parts, step="align", parent=pretrained.hash, **facts)
            (run / "gate").mkdir()
            against = None if name == "1" else "1"
            verdict = {"promoted": True, "against": against, "reasons": []}
            (run / "gate" / "verdict.json").write_text(json.dumps(verdict))
            (run / "gate" / "scores.json").write_text(json.dumps({"data": []}))
            version = run / "register" / "version"
            register(aligned.path, run / "gate", run / "gate", version, "seed: 0\n", RegistryConfig())
            section = DeployConfig(target="manifest", storage="pvc://models/vlm", namespace=f"team-{name}")
            manifest, transcript = (run / "deploy" / part for part in ("manifest", "transcript"))
            deploy(aligned.path, version, curated.path, manifest, transcript, "registry/serve:1", section)
            ids |= {f"{name} ingest": raw.hash, f"{name} curate": curated.hash, f"{name} pretrain": pretrained.hash}
            ids |= {f"{name} align": aligned.hash, f"{name} register": f"models:/vlm/{name}"}
            ids |= {f"{name} deploy": f"endpoint team-{name}/vlm of models:/vlm/{name}"}
        yield TwoRuns(home, ids)


def test_everything_that_used_the_pair_is_listed_and_nothing_else(two_runs: TwoRuns, tmp_path: Path) -> None:
    found = takedown(ROWS[TAKEN]["uid"], tmp_path / "takedown.txt")
    assert {usage.id for usage in found.usages} == {id for name, id in two_runs.ids.items() if name.startswith("1")}
    assert found.pairs == [ROWS[TAKEN]["uid"], ROWS[SAME]["uid"]] and not found.unread
    usages = {usage.id: usage for usage in found.usages}
    assert usages[two_runs.ids["1 curate"]].usage == "contains 2 train"
    assert usages[two_runs.ids["1 align"]].usage == "trained on it"
    assert usages[two_runs.ids["1 align"]].actions[-1] == f"rm -r {two_runs.home / '1' / 'align' / 'model'}"
    assert usages[two_runs.ids["1 deploy"]].actions == ["kubectl delete inferenceservice vlm --namespace team-1"]
    assert any("delete_model_version" in line for line in usages["models:/vlm/1"].actions)
    # The champion is the version of the other run.
    assert not any("champion" in line for line in usages["models:/vlm/1"].actions)
    assert exclusion_list.read(tmp_path / "takedown.txt") == {*found.pairs, dataset.uid(image(1))}


def test_a_test_pair_is_in_datasets_but_in_no_model(two_runs: TwoRuns, tmp_path: Path) -> None:
    found = takedown(ROWS[TESTED]["uid"], tmp_path / "takedown.txt")
    expected = {id for name, id in two_runs.ids.items() if name.split()[1] in ("ingest", "curate")}
    assert {usage.id for usage in found.usages} == expected


def test_curation_excludes_the_image_with_any_caption(two_runs: TwoRuns, tmp_path: Path) -> None:
    takedown(ROWS[TAKEN]["uid"], tmp_path / "takedown.txt")
    third = pair(image(1), "the same image, a third caption")
    raw = dataset.write(tmp_path / "raw", "pairs", [*ROWS, third], step="ingest")
    curated = run_curation(raw.path, tmp_path, exclude=str(tmp_path / "takedown.txt"))
    assert [row["uid"] for row in curated.rows(["uid"])] == [row["uid"] for row in ROWS[OTHER:-1]]
    ledger = pq.read_table(tmp_path / "ledger" / "ledger.parquet").to_pylist()
    excluded = [row["uid"] for row in ledger if (row["verdict"], row["rule"]) == ("excluded", "takedown")]
    assert excluded == [ROWS[TAKEN]["uid"], ROWS[SAME]["uid"], third["uid"]]
    summary = json.loads((tmp_path / "ledger" / "summary.json").read_text())
    assert summary["rows_in"] == 7 == summary["kept"] + sum(summary["dropped"].values())
    assert (summary["dropped"]["takedown"], summary["dropped"]["exact_duplicate"]) == (3, 1)
    page = (tmp_path / "funnel.html").read_text()
    assert "3 dropped" not in page and ROWS[TAKEN]["caption"] not in page  # the page does not show excluded pairs


def test_the_exclusion_list_is_appended_to_and_validated(two_runs: TwoRuns, tmp_path: Path) -> None:
    out = tmp_path / "takedown.txt"
    for row in (ROWS[TAKEN], ROWS[TESTED], ROWS[TAKEN]):
        takedown(row["uid"], out)
    assert len(out.read_text().splitlines()) == len(exclusion_list.read(out)) == 5
    out.write_text("abc\n")
    with pytest.raises(DataError, match="takedown.txt: line 1: 'abc' is not a uid"):
        run_curation(two_runs.home / "1" / "ingest" / "raw", tmp_path / "a", exclude=str(out))
    with pytest.raises(DataError, match="curate.exclude .*none.txt: no such file"):
        run_curation(two_runs.home / "1" / "ingest" / "raw", tmp_path / "a", exclude=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="line 1"):  # a file that is not an exclusion list is not written to
        takedown(ROWS[TAKEN]["uid"], out)
    assert out.read_text() == "abc\n"


def test_an_invalid_uid_is_an_error_and_writes_nothing(two_runs: TwoRuns, tmp_path: Path) -> None:
    for uid, message in (("f" * 32, "no dataset in .* contains this pair"), ("red", "not a uid; a pair's uid has 32")):
        with pytest.raises(DataError, match=message):
            takedown(uid, tmp_path / "takedown.txt")
    with pytest.raises(DataError, match="cannot write the file"):
        takedown(ROWS[TAKEN]["uid"], tmp_path / "nowhere" / "takedown.txt")
    assert not (tmp_path / "takedown.txt").exists()


def test_a_damaged_dataset_is_not_searched(two_runs: TwoRuns, tmp_path: Path) -> None:
    folder = two_runs.home / "3" / "ingest" / "raw"
    dataset.write(folder, "pairs", ROWS[OTHER:TESTED], step="ingest")
    (folder / "data-00000.parquet").rename(folder / "moved")
    assert lineage(ROWS[TAKEN]["uid"]).content["unread"] == {}  # skipped with a warning
    (folder / "moved").rename(folder / "data-00000.parquet")


def test_a_running_endpoint_is_traced_to_its_own_version_only(two_runs: TwoRuns) -> None:
    with local_predictor(two_runs.home / "2" / "align" / "model", "vlm", timeout=150) as url:
        found = lineage(f"{url}/v2/models/vlm/infer")
    assert found.graph.nodes[found.graph.start[0]].kind == "endpoint"
    assert found.graph.nodes.keys() - {found.graph.start[0]} == {
        id for name, id in two_runs.ids.items() if name.startswith("2") and name != "2 deploy"
    }


def test_ingest_excludes_images_that_were_taken_down(two_runs: TwoRuns, tmp_path: Path) -> None:
    takedown(ROWS[TAKEN]["uid"], tmp_path / "takedown.txt")
    (tmp_path / "source").mkdir()
    for index, row in enumerate(ROWS[: TESTED + 1]):
        (tmp_path / "source" / f"{index}.png").write_bytes(row["image"])
    lines = [json.dumps({"image": f"{index}.png", "caption": f"words {index}"}) for index in range(TESTED + 1)]
    (tmp_path / "source" / "pairs.jsonl").write_text("\n".join(lines))
    section = IngestConfig(source="folder", path=str(tmp_path / "source"), exclude=str(tmp_path / "takedown.txt"))
    raw = ingest(section, tmp_path / "raw")
    assert [row["caption"] for row in raw.rows(["caption"])] == ["words 2", "words 3"]
    assert raw.card.notes["quarantined"]["rows"] == {"taken down": 2} and raw.card.notes["rows_read"] == 4
    left = [json.loads(line) for line in (tmp_path / "raw" / "quarantine.jsonl").read_text().splitlines()]
    assert all(entry["reason"].startswith("taken down: ") for entry in left)


def test_the_command_prints_the_required_actions(two_runs: TwoRuns, tmp_path: Path) -> None:
    out = tmp_path / "takedown.txt"
    done = vlmflow(two_runs.home, "takedown", ROWS[TAKEN]["uid"], "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert f"and 1 more of the same image: {ROWS[SAME]['uid']}" in done.stdout
    for line in ("endpoints: 1", "versions: 1", "models: 2", "datasets: 2", f"--set curate.exclude={out}"):
        assert line in done.stdout
    as_json = vlmflow(two_runs.home, "takedown", ROWS[TAKEN]["uid"], "--out", str(out), "--json")
    assert json.loads(as_json.stdout)["exclusion_list"] == str(out)
