"""A step whose section is null is left out, with every step that needs its result."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from components.plan.sections import SECTIONS
from pipelines.catalog import load_pipeline
from pipelines.flow import sections_read
from pipelines.step_cli import names
from tests.conftest import executor_input
from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.ledger import history
from vlmflow.config import recipes
from vlmflow.config.sections import check_left_out, explain_absence
from vlmflow.errors import RecipeError
from vlmflow.runtime import left_out
from vlmflow.runtime.local_step import LocalStep
from vlmflow.runtime.step_task import StepTask
from vlmflow.runtime.traits import StepTraits, traits_from_arguments


def component(name: str) -> Any:
    return getattr(import_module(f"components.{name}.component"), name)


def traits(name: str) -> StepTraits:
    return traits_from_arguments(component(name).component_spec.implementation.container.args)


def task(name: str, folder: Path, sections: dict[str, Any], **inputs: Path) -> StepTask:
    parameters = {"recipe": recipes.dump(sections), "section": name}
    given = executor_input(folder, parameters, inputs, list(component(name).component_spec.outputs or {}))
    return StepTask(f"components.{name}.component", name, json.loads(given), traits=traits(name))


def test_traits_survive_the_containers_arguments() -> None:
    given = StepTraits(whole_recipe=True, passes_on=True, optional_inputs="verdict,version")
    assert traits_from_arguments([*given.flags(), "--executor_input", "{{$}}"]) == given


@pytest.mark.parametrize("name", sorted(set(names()) & SECTIONS.keys()))
def test_every_step_with_a_section_is_left_out_or_passes_its_input_on(name: str, tmp_path: Path) -> None:
    why = left_out.reason_to_leave_out(task(name, tmp_path, {name: None}))
    assert traits(name).passes_on or why == f"the section {name!r} of the recipe is null"
    assert not left_out.reason_to_leave_out(task(name, tmp_path, {}))


def test_a_task_that_needs_a_missing_artifact_is_left_out_too(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "pipeline"
    first = LocalStep(task("pretrain", folder / "pretrain", {"pretrain": None}), tmp_path / "run")
    assert first.restore()
    model = folder / "pretrain" / "model"
    second = task("caption", folder / "caption", {"caption": {"task": "caption"}}, start=model)
    assert LocalStep(second, tmp_path / "run").restore()
    assert left_out.reason(folder / "caption" / "model") == "the section 'pretrain' of the recipe is null"
    report = task("report", folder / "report", {}, verdict=model, version=model)
    assert not left_out.reason_to_leave_out(report)


class _Artifact:
    def __init__(self, path: Path):
        self.path = str(path)


def test_without_curation_and_instructions_the_rows_are_passed_on(tmp_path: Path) -> None:
    row = {"uid": "u1", "image": b"", "caption": "a kite", "width": 1, "height": 1, "source": "", "licence": "",
           "split": "train", "label": "", "regions": [], "lines": []}  # fmt: skip
    raw = dataset.write(tmp_path / "raw", "pairs", [row])
    (tmp_path / "out").mkdir()
    for name, inputs in (("curate", {"raw": raw.path}), ("instructions", {"pairs": raw.path})):
        one = task(name, tmp_path / "out", {name: None}, **inputs)
        artifacts = {key: _Artifact(path) for key, path in {**one.inputs, **one.outputs}.items()}
        component(name).python_func(**artifacts, **one.parameters)
    assert Dataset(tmp_path / "out" / "curated").hash == raw.hash
    assert "kept" in history(tmp_path / "out" / "ledger", "u1")[0]
    empty = Dataset(tmp_path / "out" / "conversations", "conversations")
    assert not len(empty) and "null" in empty.card.notes["skipped"]


def test_a_contradictory_recipe_is_refused() -> None:
    sections = {"evaluate": None, "gate": {}, "deploy": {}}
    with pytest.raises(RecipeError, match="evaluate: null .* gate uses its result; set gate to null too"):
        check_left_out(sections, SECTIONS)
    check_left_out({"pretrain": None, "caption": {"task": "caption"}}, SECTIONS)
    check_left_out(sections, ["gate"])


def test_the_sections_that_are_null_or_missing_are_named() -> None:
    lines = list(explain_absence({"pretrain": None, "gate": {}}, ["curate", "pretrain", "caption", "gate"]))
    assert lines == [
        "left out, because their section is null: pretrain, and what needs their results",
        "without a section in the recipe, with default values: curate",
    ]


def test_the_sections_that_a_pipeline_reads() -> None:
    assert sections_read(load_pipeline("sweep")) == [
        "ingest", "curate", "validate_curated", "instructions", "sweep", "pretrain", "evaluate",
    ]  # fmt: skip
