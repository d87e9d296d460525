"""A pair is taken down: everything that used it is listed, its siblings are not, and it does not come back."""

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

TAKEN, SAME, OTHER, TESTED = range(4)  # rows: the pair, its picture with another caption, another pair, a test pair


def picture(seed: int) -> bytes:
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(patches).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def pair(image: bytes, caption: str, split: str = "train") -> dict[str, Any]:
    row = {"uid": dataset.uid(image, caption), "image": image, "caption": caption, "split": split, "label": ""}
    return {**row, "width": 64, "height": 64, "source": "test", "licence": "", "regions": [], "lines": []}


ROWS = [
    pair(picture(1), "a picture that has to go"),
    pair(picture(1), "the very same, said otherwise"),
    pair(picture(2), "another picture of the kind"),
    pair(picture(3), "a picture to test on", "test"),
    pair(picture(4), "a picture of which there are two"),
    pair(picture(4), "a picture of which there are two"),
]


@dataclass
class Life:
    """Two runs with one test set: `1` had the pair, `2` had not; each curated, trained, registered and deployed."""

    home: Path
    made: dict[str, str]  # `1 pretrain` → id


def clean(raw: Path, out: Path, **section: Any) -> Dataset:
    curated, ledger, funnel, scorer = (out / name for name in ("curated", "ledger", "funnel.html", "scorer"))
    return curate(raw, curated, ledger, funnel, scorer, CurateConfig(dedup_images=False, **section))


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("VLMFLOW_HOME", str(home))
        made = {}
        for name, rows in (("1", ROWS), ("2", ROWS[OTHER:])):
            run = home / name
            raw = dataset.write(run / "ingest" / "raw", "pairs", rows, step="ingest")
            curated = clean(raw.path, run / "curate")
            parts = build_dual_encoder([row["caption"] for row in rows] * 9, vision_layers=1, text_layers=1)
            facts: dict[str, Any] = {"family": "tiny-dual-encoder", "datasets": [curated.hash]}
            first = checkpoint.save(run / "pretrain" / "model", *parts, step="pretrain", parent=None, **facts)
            parts[0].logit_scale.data += 1  # it learns
            grown = checkpoint.save(run / "align" / "model", *parts, step="align", parent=first.hash, **facts)
            (run / "gate").mkdir()
            against = None if name == "1" else "1"
            verdict = {"promoted": True, "against": against, "reasons": []}
            (run / "gate" / "verdict.json").write_text(json.dumps(verdict))
            (run / "gate" / "scores.json").write_text(json.dumps({"data": []}))
            version = run / "register" / "version"
            register(grown.path, run / "gate", run / "gate", version, "seed: 0\n", RegistryConfig())
            section = DeployConfig(target="manifest", storage="pvc://models/vlm", namespace=f"team-{name}")
            manifest, transcript = (run / "deploy" / part for part in ("manifest", "transcript"))
            deploy(grown.path, version, curated.path, manifest, transcript, "registry/serve:1", section)
            made |= {f"{name} ingest": raw.hash, f"{name} curate": curated.hash, f"{name} pretrain": first.hash}
            made |= {f"{name} align": grown.hash, f"{name} register": f"models:/vlm/{name}"}
            made |= {f"{name} deploy": f"endpoint team-{name}/vlm of models:/vlm/{name}"}
        yield Life(home, made)


def test_what_used_the_pair_is_listed_and_nothing_else(life: Life, tmp_path: Path) -> None:
    found = takedown(ROWS[TAKEN]["uid"], tmp_path / "gone.txt")
    assert {usage.id for usage in found.usages} == {id for name, id in life.made.items() if name.startswith("1")}
    assert found.pairs == [ROWS[TAKEN]["uid"], ROWS[SAME]["uid"]] and not found.unread
    usages = {usage.id: usage for usage in found.usages}
    assert usages[life.made["1 curate"]].usage == "contains 2 train"
    assert usages[life.made["1 align"]].usage == "trained on it"
    assert usages[life.made["1 align"]].actions[-1] == f"rm -r {life.home / '1' / 'align' / 'model'}"
    assert usages[life.made["1 deploy"]].actions == ["kubectl delete inferenceservice vlm --namespace team-1"]
    assert any("delete_model_version" in line for line in usages["models:/vlm/1"].actions)
    assert not any("champion" in line for line in usages["models:/vlm/1"].actions)  # the other run's is champion now
    assert exclusion_list.read(tmp_path / "gone.txt") == {*found.pairs, dataset.uid(picture(1))}


def test_a_test_pair_has_taught_nothing_but_is_held(life: Life, tmp_path: Path) -> None:
    found = takedown(ROWS[TESTED]["uid"], tmp_path / "gone.txt")
    expected = {id for name, id in life.made.items() if name.split()[1] in ("ingest", "curate")}
    assert {usage.id for usage in found.usages} == expected


def test_the_pair_does_not_come_back_whatever_its_caption(life: Life, tmp_path: Path) -> None:
    takedown(ROWS[TAKEN]["uid"], tmp_path / "gone.txt")
    third = pair(picture(1), "the same again, in words that nobody knew of")
    raw = dataset.write(tmp_path / "raw", "pairs", [*ROWS, third], step="ingest")
    curated = clean(raw.path, tmp_path, exclude=str(tmp_path / "gone.txt"))
    assert [row["uid"] for row in curated.rows(["uid"])] == [row["uid"] for row in ROWS[OTHER:-1]]
    ledger = pq.read_table(tmp_path / "ledger" / "ledger.parquet").to_pylist()
    gone = [row["uid"] for row in ledger if (row["verdict"], row["rule"]) == ("excluded", "takedown")]
    assert gone == [ROWS[TAKEN]["uid"], ROWS[SAME]["uid"], third["uid"]]
    summary = json.loads((tmp_path / "ledger" / "summary.json").read_text())
    assert summary["rows_in"] == 7 == summary["kept"] + sum(summary["dropped"].values())
    assert (summary["dropped"]["takedown"], summary["dropped"]["exact_duplicate"]) == (3, 1)
    page = (tmp_path / "funnel.html").read_text()
    assert "3 dropped" not in page and ROWS[TAKEN]["caption"] not in page  # it is counted, and shown to nobody


def test_the_exclusion_list_grows_and_is_read_strictly(life: Life, tmp_path: Path) -> None:
    out = tmp_path / "gone.txt"
    for row in (ROWS[TAKEN], ROWS[TESTED], ROWS[TAKEN]):
        takedown(row["uid"], out)
    assert len(out.read_text().splitlines()) == len(exclusion_list.read(out)) == 5
    out.write_text("abc\n")
    with pytest.raises(DataError, match="gone.txt: line 1: 'abc' is not a uid"):
        clean(life.home / "1" / "ingest" / "raw", tmp_path / "a", exclude=str(out))
    with pytest.raises(DataError, match="curate.exclude .*: no such file"):
        clean(life.home / "1" / "ingest" / "raw", tmp_path / "a", exclude=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="line 1"):  # a file that is something else is not written to
        takedown(ROWS[TAKEN]["uid"], out)
    assert out.read_text() == "abc\n"


def test_a_wrong_uid_says_so_and_writes_nothing(life: Life, tmp_path: Path) -> None:
    for uid, message in (("f" * 32, "no dataset in .* holds this pair"), ("red", "no uid; a pair's uid has 32")):
        with pytest.raises(DataError, match=message):
            takedown(uid, tmp_path / "gone.txt")
    with pytest.raises(DataError, match="cannot be written"):
        takedown(ROWS[TAKEN]["uid"], tmp_path / "nowhere" / "gone.txt")
    assert not (tmp_path / "gone.txt").exists()


def test_what_is_out_of_reach_is_said(life: Life, tmp_path: Path) -> None:
    card = life.home / "3" / "ingest" / "raw"
    dataset.write(card, "pairs", ROWS[OTHER:TESTED], step="ingest")
    (card / "data-00000.parquet").rename(card / "moved")
    assert lineage(ROWS[TAKEN]["uid"]).content["unread"] == {}  # a damaged folder is left out, with a warning
    (card / "moved").rename(card / "data-00000.parquet")


def test_a_running_endpoint_is_traced_to_its_own_version_and_not_to_its_sibling(life: Life) -> None:
    with local_predictor(life.home / "2" / "align" / "model", "vlm", timeout=150) as url:
        found = lineage(f"{url}/v2/models/vlm/infer")
    assert found.graph.nodes[found.graph.start[0]].kind == "endpoint"
    assert found.graph.nodes.keys() - {found.graph.start[0]} == {
        id for name, id in life.made.items() if name.startswith("2") and name != "2 deploy"
    }


def test_ingest_leaves_out_what_was_taken_down(life: Life, tmp_path: Path) -> None:
    takedown(ROWS[TAKEN]["uid"], tmp_path / "gone.txt")
    (tmp_path / "source").mkdir()
    for place, row in enumerate(ROWS[: TESTED + 1]):
        (tmp_path / "source" / f"{place}.png").write_bytes(row["image"])
    lines = [json.dumps({"image": f"{place}.png", "caption": f"words {place}"}) for place in range(TESTED + 1)]
    (tmp_path / "source" / "pairs.jsonl").write_text("\n".join(lines))
    section = IngestConfig(source="folder", path=str(tmp_path / "source"), exclude=str(tmp_path / "gone.txt"))
    raw = ingest(section, tmp_path / "raw")
    assert [row["caption"] for row in raw.rows(["caption"])] == ["words 2", "words 3"]
    assert raw.card.notes["quarantined"]["rows"] == {"taken down": 2} and raw.card.notes["rows_read"] == 4
    left = [json.loads(line) for line in (tmp_path / "raw" / "quarantine.jsonl").read_text().splitlines()]
    assert all(entry["reason"].startswith("taken down: ") for entry in left)


def test_the_command_tells_what_to_do(life: Life, tmp_path: Path) -> None:
    out = tmp_path / "gone.txt"
    done = vlmflow(life.home, "takedown", ROWS[TAKEN]["uid"], "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert f"and 1 more of the same picture: {ROWS[SAME]['uid']}" in done.stdout
    for line in ("endpoints: 1", "versions: 1", "models: 2", "datasets: 2", f"--set curate.exclude={out}"):
        assert line in done.stdout
    as_json = vlmflow(life.home, "takedown", ROWS[TAKEN]["uid"], "--out", str(out), "--json")
    assert json.loads(as_json.stdout)["exclusion_list"] == str(out)
