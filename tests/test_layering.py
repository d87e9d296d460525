"""Import rules: imports go down, no step imports another, no circles, no torch for compiling, thin component files."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from vlmflow.runtime.code_hash import LAYERS, ROOT, import_closure, imported_modules, module_file

FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
COMPONENTS = sorted((ROOT / "components").glob("*/component.py"))
SECTION_TABLE = ROOT / "components" / "plan" / "sections.py"  # names the config class of every section in a string


def layer(module: str) -> int:
    return LAYERS.index(module.split(".")[0])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    own = LAYERS.index(path.relative_to(ROOT).parts[0])
    upward = [module for module in imported_modules(path) if layer(module) > own]
    assert not upward, f"{path.relative_to(ROOT)} imports from a higher layer: {upward}"


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda p: p.parent.name)
def test_no_step_imports_another_step(path: Path) -> None:
    step = path.parent.name
    for file in path.parent.glob("*.py"):
        if file != SECTION_TABLE:
            others = [m for m in imported_modules(file) if m.startswith("components.") and m.split(".")[1] != step]
            assert not others, f"{file.relative_to(ROOT)} imports another step: {others}; move the code to vlmflow/"


def test_there_is_no_import_circle() -> None:
    graph = {path: {module_file(module) for module in imported_modules(path)} - {path} for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import circle: " + " -> ".join(str(path.relative_to(ROOT)) for path in error.args[1]))


def test_packages_are_empty_and_every_step_has_a_component() -> None:
    filled = [str(path.relative_to(ROOT)) for path in FILES if path.name == "__init__.py" and path.read_text().strip()]
    assert not filled, f"__init__.py files with content: {filled}"
    folders = {path.name for path in (ROOT / "components").iterdir() if (path / "__init__.py").exists()}
    assert folders == {path.parent.name for path in COMPONENTS}
    assert {path.name for path in (ROOT / "components").glob("*.py")} == {"__init__.py"}


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda p: p.parent.name)
def test_a_component_file_is_thin(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert "from __future__ import annotations" not in text  # KFP raises TypeError on it
    top = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    light = {"vlmflow.runtime.step", "vlmflow.config.sections", "components.plan.sections", "kfp", "typing"}
    assert {"vlmflow.runtime.step"} <= imported <= light


def test_compiling_a_pipeline_imports_no_heavy_library() -> None:
    code = (
        "import sys, pipelines.end_to_end; "
        "print([m for m in ('torch','transformers','mlflow','great_expectations','kserve') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_imports_neither_kfp_nor_pydantic() -> None:
    code = "import sys, pipelines.cli; print([m for m in ('kfp', 'kubernetes', 'pydantic') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_code_of_a_step_includes_builders_that_are_named_in_strings() -> None:
    """The zoo names its builders in strings; a change in one of them must rerun the step."""
    files = {str(path.relative_to(ROOT)) for path in import_closure("components.pretrain.component")}
    assert {"models/zoo.py", "models/tiny/dual_encoder.py", "vlmflow/training/pretraining/training.py"} <= files
    assert not any(name.startswith("vlmflow/serving/") for name in files)


def test_no_module_is_named_utils_common_or_helpers() -> None:
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not names & {"utils", "common", "helpers"}
