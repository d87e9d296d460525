"""The verdicts do not depend on the engine, the number of workers, or interruptions."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.curate.config import CurateConfig
from components.curate.curation import curate
from components.curate.engine import Engine
from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import uid
from vlmflow.config.recipes import load
from vlmflow.errors import RecipeError, SpaceError
from vlmflow.runtime.code_hash import ROOT

WORDS = ("a", "a red", "an", "an old", "the", "the big")
NAMES = ("raw", "curated", "ledger", "funnel.html", "scorer")
# A separate process for the step. It counts the parts that it finishes, and kills itself while it writes the result of
# the part with the given index.
STEP = """
import json, os, signal, sys
from pathlib import Path
from components.curate import engine
from components.curate.curation import curate
from components.curate.config import CurateConfig
from vlmflow.runtime.process import configure_logging, limit_threads
from vlmflow.config.recipes import load
count, last = 0, int(sys.argv[3])
run_and_commit = engine._run_and_commit
def counted(work, file, task):
    global count
    if count == last:
        Path(f"{file}.{os.getpid()}.partial").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    run_and_commit(work, file, task)
    count += 1
if __name__ == "__main__":
    limit_threads()
    configure_logging()
    engine._run_and_commit = counted
    root = Path(sys.argv[1])
    curate(*(root / name for name in ("raw", "curated", "ledger", "funnel.html", "scorer")),
           load(CurateConfig, {"curate": json.loads(sys.argv[2])}, "curate"))
    print(count)
"""


def make_image(seed: int) -> bytes:
    """Return 6 x 6 random patches, smoothly enlarged, as PNG."""
    import io

    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(patches).resize((48, 48), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """240 pairs, some of which fail the default rules; duplicates are far apart."""
    pairs = []
    for i in range(240):
        image, caption = make_image(i % 200), f"{WORDS[i % 6]} thing number {i % 190} of all"
        if i % 31 == 0:
            image = image[: len(image) // 2]
        if i % 37 == 0:
            caption = "IMG_0042.jpg"
        pairs.append(
            {
                "uid": uid(image, caption),
                "image": image,
                "caption": caption,
                "width": 48,
                "height": 48,
                "source": "",
                "licence": "",
                "split": "test" if i % 40 == 7 else "train",
                "label": "",
                "regions": [],
                "lines": [],
            }
        )
    return pairs


def prepare(root: Path, rows: list[dict[str, Any]], shard_rows: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dataset, "SHARD_ROWS", shard_rows)
    dataset.write(root / "raw", "pairs", rows)
    return root


def kept(root: Path) -> list[str]:
    return sorted(row["uid"] for row in dataset.Dataset(root / "curated").rows(["uid"]))


def verdicts(root: Path) -> list[tuple[Any, ...]]:
    """Return the ledger without the row numbers, sorted."""
    entries = pq.read_table(root / "ledger" / "ledger.parquet").drop_columns(["row"]).to_pylist()
    return sorted(tuple(map(repr, entry.values())) for entry in entries)


def run(root: Path, **section: Any) -> Path:
    curate(*(root / name for name in NAMES), load(CurateConfig, {"curate": section}, "curate"))  # type: ignore[call-arg]
    assert not list((root / ".shards").iterdir())  # a successful run removes its scratch folder
    return root


def step(root: Path, killed_after: int = -1, **section: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STEP, str(root), json.dumps(section), str(killed_after)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)


SCORED = {
    "score": {"model": "bootstrap", "fraction": 0.6},
    "bootstrap": {"training": {"max_steps": 4, "batch_size": 16}, "model": {"image_size": 32}},
}


@pytest.fixture(scope="module")
def reference(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Curate with one process, one shard and the original order of rows."""
    with pytest.MonkeyPatch.context() as patch:
        return run(prepare(tmp_path_factory.mktemp("reference"), rows, 8192, patch), **SCORED)


def test_verdicts_do_not_depend_on_workers_order_or_shards(
    tmp_path: Path, reference: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0.3 * len(rows) < len(kept(reference)) < 0.6 * len(rows)
    for seed, shard_rows, processes in ((1, 8192, 1), (2, 50, 1), (3, 33, 2)):
        shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
        root = run(prepare(tmp_path / str(seed), shuffled, shard_rows, monkeypatch), processes=processes, **SCORED)
        assert verdicts(root) == verdicts(reference)
        assert kept(root) == kept(reference)


@pytest.mark.soak
def test_ray_gives_the_same_verdicts(
    tmp_path: Path, reference: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    score = {**SCORED["score"], "model": str(reference / "scorer")}  # trained already
    done = step(prepare(tmp_path, rows, 60, monkeypatch), engine="ray", processes=2, score=score)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "0"  # Ray's workers did all of the work
    assert verdicts(tmp_path) == verdicts(reference)
    assert kept(tmp_path) == kept(reference)


@pytest.mark.soak
def test_a_killed_curation_resumes(
    tmp_path: Path, reference: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = 12
    root = prepare(tmp_path, rows, len(rows) // shards, monkeypatch)
    for killed_after in (5, shards - 5 + 3):  # during feature extraction; then, resumed, during scoring
        died = step(root, killed_after, **SCORED)
        assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
        assert not (root / "curated").exists() and not (root / "ledger").exists()
    done = step(root, **SCORED)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == str(shards - 3)  # three were scored before the kill
    assert "12 of 12 parts are finished" in done.stderr
    assert "3 of 12 parts are finished" in done.stderr
    assert verdicts(root) == verdicts(reference)
    assert kept(root) == kept(reference)
    assert not list((root / ".shards").iterdir())


def test_a_dead_worker_is_a_one_line_error_and_finished_parts_are_kept(tmp_path: Path) -> None:
    engine = Engine(processes=2, scratch=tmp_path)
    with pytest.raises(SpaceError, match=r"one of 2 workers died.*processes below 2") as caught:
        list(engine.run(dies_at_three, [(str(i), (i,)) for i in range(6)]))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "0.arrow").exists()
    found = list(Engine(scratch=tmp_path).run(twice, [("0", (0,)), ("9", (9,))]))
    assert [table["x"].to_pylist() for table in found] == [[0], [18]]


def twice(number: int) -> pa.Table:
    return pa.table({"x": [2 * number]})


def dies_at_three(number: int) -> pa.Table:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return twice(number)


def test_equal_parts_run_once(tmp_path: Path) -> None:
    tables = list(Engine(scratch=tmp_path).run(twice, [("a", (1,)), ("a", (1,)), ("b", (2,))]))
    assert [table["x"].to_pylist() for table in tables] == [[2], [2], [4]]


@pytest.mark.parametrize(("key", "value"), [("processes", 0), ("engine", "spark")])
def test_an_invalid_engine_is_rejected(key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=key):
        load(CurateConfig, {"curate": {key: value}}, "curate")
