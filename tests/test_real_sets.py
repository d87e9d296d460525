"""The benchmark on real data sets: its splits, its table, and the recipes on the sets themselves, where available."""

import json
from pathlib import Path

import pytest

from benchmarks.real_sets import RECIPES, prepare, table
from components.ingest.config import IngestConfig
from components.ingest.ingestion import ingest
from components.instructions.config import InstructionConfig
from components.instructions.conversations import build_conversations
from components.plan.sections import check
from tests.conftest import SHARED
from vlmflow.config import recipes


def test_permutations_of_a_scene_are_in_one_split(tmp_path: Path) -> None:
    source, out = tmp_path / "nlvr", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    rows = [
        {"image": f"{scene}-{view}-{order}.png", "sentence": "s", "label": True, "identifier": f"{scene}-{view}"}
        for scene in range(40)
        for view in range(2)
        for order in range(2)
    ]
    (source / "sentences.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert prepare("nlvr", tmp_path, out) == [f"ingest.path={out}", "ingest.columns.split=split"]
    splits: dict[str, set[str]] = {}
    for line in (out / "sentences.jsonl").read_text().splitlines():
        row = json.loads(line)
        splits.setdefault(Path(row["image"]).name.split("-")[0], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert 3 < sum(found == {"test"} for found in splits.values()) < 15


def test_the_table_has_a_row_for_each_capability() -> None:
    value = {"metric": "exact match", "n": 9, "value": 0.5, "low": 0.25, "high": 0.75, "blank": 0.1, "shuffled": 0.2}
    found = {"training pairs": 8, "test pairs": 2, "cpu minutes": 1.5, "capabilities": {"a": value, "b": value}}
    lines = table({"sets": {"cards": found}}).splitlines()
    assert lines[2] == "| cards | 8 / 2 | a (exact match) | 9 | 0.500 | 0.250–0.750 | 0.100 | 0.200 | 1.5 |"
    assert lines[3].startswith("|  |  | b (exact match) |")


@pytest.mark.parametrize(("name", "tasks"), [("cards", {"objects", "ground"}), ("nlvr", {"statement"})])
def test_a_recipe_asks_the_questions_of_its_set(name: str, tasks: set[str], tmp_path: Path) -> None:
    if not (SHARED / "data" / name).is_dir():
        pytest.skip(f"the set {name} is not available")
    sections = recipes.override(
        recipes.parse(RECIPES[name]), [*prepare(name, SHARED / "data", tmp_path), "ingest.limit=40"]
    )
    check(sections)
    ingest(recipes.load(IngestConfig, sections, "ingest"), tmp_path / "pairs")
    config = recipes.load(InstructionConfig, sections, "instructions")
    data = build_conversations(tmp_path / "pairs", tmp_path / "questions", config)
    assert tasks <= set(data.table(["task"])["task"].to_pylist())
