"""`vlmflow step`: complete outputs or none, and a step that was killed is continued."""

import fcntl
import os
from pathlib import Path

import pytest

from pipelines import step_cli
from pipelines.step_cli import run_step
from vlmflow.errors import DataError, RecipeError

RECIPE = "ingest:\n  scenes: {web: 1, boxes: 0, signs: 0, test: 1}\n"


def staging(folder: Path) -> Path:
    with pytest.raises(RuntimeError), step_cli._staging_folder(folder, "ingest", {"raw": str(folder / "raw")}) as place:
        raise RuntimeError
    return place


def test_a_killed_step_leaves_nothing_after_the_next_one(tmp_path: Path) -> None:
    killed = staging(tmp_path)
    (killed / "raw").mkdir(parents=True)  # as the killed step left it
    (killed / "raw" / "data-00000.parquet").write_text("half")
    run_step("ingest", RECIPE, {}, {"raw": str(tmp_path / "raw")}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    assert (tmp_path / "raw" / "card.json").exists()


def test_finished_parts_are_kept_for_the_next_step(tmp_path: Path) -> None:
    place = staging(tmp_path)
    (place / step_cli.PARTS).mkdir(parents=True)
    (place / "raw").mkdir()
    assert staging(tmp_path) == place
    assert [path.name for path in place.iterdir()] == [step_cli.PARTS]


def test_a_failed_step_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        run_step("ingest", "ingest: {limit: 0}\n", {}, {"raw": str(tmp_path / "raw")}, {})
    assert not list(tmp_path.iterdir())


def test_a_second_process_with_the_same_outputs_is_refused(tmp_path: Path) -> None:
    place = staging(tmp_path)
    place.mkdir()
    (place / "pid").write_text("4711")
    lock = os.open(place, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(DataError, match="process 4711 is running step ingest"):
            run_step("ingest", RECIPE, {}, {"raw": str(tmp_path / "raw")}, {})
    finally:
        os.close(lock)
