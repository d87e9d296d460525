"""A step that reads a source runs again if a file that it opened, listed or missed has changed, wherever it is."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from components.ingest.component import ingest  # noqa: F401  the step under test, imported once
from tests.conftest import executor_input
from vlmflow.artifacts.file_reads import FileReads, are_unchanged
from vlmflow.config import recipes
from vlmflow.runtime.local_step import LocalStep
from vlmflow.runtime.step_task import StepTask
from vlmflow.runtime.traits import StepTraits


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (32, 24), (shade, 90, 30)).save(path)


def write_index(folder: Path, prefix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    index = folder / "index.jsonl"
    rows = [{"image": f"{prefix}{i}.png", "caption": f"kite number {i}"} for i in range(3)]
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return index


def beside(place: Path) -> tuple[Path, Path]:
    return write_index(place / "in"), place / "in"


def by_absolute_names(place: Path) -> tuple[Path, Path]:
    return write_index(place / "in", f"{place}/disk/"), place / "disk"


def behind_a_link(place: Path) -> tuple[Path, Path]:
    write_index(place / "in", "images/")
    (place / "disk").mkdir()
    (place / "in" / "images").symlink_to(place / "disk")
    return place / "in", place / "disk"


def in_brackets(place: Path) -> tuple[Path, Path]:
    return write_index(place / "pictures [v2]").parent, place / "pictures [v2]"


Layout = Callable[[Path], tuple[Path, Path]]


@pytest.mark.parametrize("layout", [beside, by_absolute_names, behind_a_link, in_brackets])
def test_ingest_runs_again_if_an_image_changed(layout: Layout, tmp_path: Path) -> None:
    source, images = layout(tmp_path)
    for i in range(3):
        picture(images / f"{i}.png", i)
    recipe = recipes.dump({"ingest": {"source": "folder", "path": str(source)}})

    def run(name: str) -> bool:
        """Run the step as a run does, without processes; return whether it was taken from the cache."""
        folder = tmp_path / "home" / name / "pipeline" / "ingest"
        given = executor_input(folder, {"recipe": recipe, "section": "ingest"}, {}, ["raw"])
        task = StepTask(
            "components.ingest.component", "ingest", json.loads(given), traits=StepTraits(reads_sources=True)
        )
        step = LocalStep(task, tmp_path / "home" / name)
        if step.restore():
            return True
        step.run()
        return False

    assert not run("first") and run("second")
    picture(images / "1.png", 200)
    assert not run("third") and run("fourth")
    picture(images / "1.png", 1)
    assert run("back")  # there is an entry for each state of the source


def reads_of(read: Callable[[], object]) -> FileReads:
    reads = FileReads()
    with reads.recording():
        read()
    return reads


def test_files_folders_and_missing_names_are_compared(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")

    def read() -> None:
        (tmp_path / "a").read_text()
        list(tmp_path.iterdir())
        with pytest.raises(FileNotFoundError):
            (tmp_path / "b").open()

    hashes = reads_of(read).hashes()
    assert hashes and are_unchanged(hashes)
    (tmp_path / "b").write_text("")
    assert not are_unchanged(hashes)
    (tmp_path / "b").unlink()
    assert are_unchanged(hashes)
    (tmp_path / "a").write_text("2")
    assert not are_unchanged(hashes)


def test_a_file_that_changes_while_it_is_read_gives_no_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    reads = reads_of((tmp_path / "a").read_text)
    (tmp_path / "a").write_text("22")
    assert reads.hashes() is None


def test_a_connection_to_a_server_gives_no_hashes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert reads_of(lambda: socket.create_connection(server.getsockname()).close()).hashes() is None


def test_relative_paths_belong_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    monkeypatch.chdir(tmp_path / "one")
    hashes = reads_of(Path("a").read_text).hashes()
    assert hashes and list(hashes) == ["a"] and are_unchanged(hashes)
    monkeypatch.chdir(tmp_path / "two")
    assert not are_unchanged(hashes)
