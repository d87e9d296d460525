"""The shape of the house: imports go down, compiling needs no torch, component files are thin."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from vlmflow.runtime.code_hash import FLOORS, ROOT, closure, imports

FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
FACES = sorted((ROOT / "components").glob("*/component.py"))


def floor(name: str) -> int:
    return FLOORS.index(name.split(".")[0])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    own = FLOORS.index(path.relative_to(ROOT).parts[0])
    upward = [name for name in imports(path) if floor(name) > own]
    assert not upward, f"{path.relative_to(ROOT)} imports from a floor above: {upward}"


@pytest.mark.parametrize("path", FACES, ids=lambda p: p.parent.name)
def test_a_component_file_is_import_call_return(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert "from __future__ import annotations" not in text  # KFP raises TypeError on it
    top = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert (
        {"vlmflow.runtime.step"}
        <= imported
        <= {"vlmflow.runtime.step", "vlmflow.config.sections", "components.plan.sections", "kfp", "typing"}
    )


def test_compiling_a_pipeline_imports_nothing_heavy() -> None:
    code = (
        "import sys, pipelines.end_to_end; "
        "print([m for m in ('torch','transformers','mlflow','great_expectations','kserve') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_steps_code_covers_what_it_names_as_text() -> None:
    """The zoo names its builders as text; a change in one of them must still run the step again."""
    files = {str(path.relative_to(ROOT)) for path in closure("components.pretrain.component")}
    assert {"models/zoo.py", "models/tiny/dual_encoder.py", "vlmflow/training/pretraining/training.py"} <= files
    assert not any(name.startswith("components/serve/") for name in files)


def test_no_room_for_leftovers() -> None:
    names = {path.name for path in ROOT.rglob("*") if ".venv" not in path.parts}
    assert not names & {"utils.py", "utils", "common.py", "helpers.py"}
