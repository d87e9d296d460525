"""The generated reference is up to date and complete: every key of a recipe and every variable is described."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from components.plan.sections import SECTIONS, config_class
from pipelines import reference
from vlmflow.config import recipes
from vlmflow.config.environment import VARIABLES
from vlmflow.config.section import Section, is_section
from vlmflow.runtime.code_hash import ROOT

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SCHEMA = json.loads((ROOT / "recipes" / "schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", reference.FILES)
def test_a_generated_file_is_up_to_date(file: str) -> None:
    assert reference.FILES[file]() == (ROOT / file).read_text(encoding="utf-8"), "run `make docs`"


def sections_within(cls: type[Section]) -> Iterator[type[Section]]:
    yield cls
    for field in cls.model_fields.values():
        candidates: tuple[Any, ...] = (field.annotation, *get_args(field.annotation))
        for inner in candidates:
            if is_section(inner):
                yield from sections_within(inner)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_has_a_description(name: str) -> None:
    for cls in sections_within(config_class(name)):
        missing = [key for key, field in cls.model_fields.items() if not field.description]
        assert not missing, f"{cls.__name__}: {missing}"
        assert cls.__doc__ and cls.__doc__ != Section.__doc__, f"{cls.__name__} has no docstring"


def test_every_environment_variable_is_described_and_used() -> None:
    table = ROOT / "vlmflow" / "config" / "environment.py"
    files = [path for layer in reference.LAYERS for path in (ROOT / layer).rglob("*.py") if path != table]
    used = {name for path in files for name in re.findall(r"\bVLMFLOW_[A-Z_]*[A-Z]\b", path.read_text("utf-8"))}
    assert used == {name for name in VARIABLES if name.startswith("VLMFLOW_")}
    assert [name for name in VARIABLES if not reference.uses(name)] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_names_the_schema_and_is_valid_by_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found and (path.parent / found[1]).resolve() == ROOT / "recipes" / "schema.json"
    jsonschema.validate(recipes.parse(path), SCHEMA)


@pytest.mark.parametrize(
    "wrong", [{"ingst": {}}, {"ingest": {"limt": 1}}, {"ingest": {"holdout": 2}}, {"curate": {"score": {"model": 1}}}]
)
def test_the_schema_refuses_a_mistake(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)
    jsonschema.validate({"curate": {"score": None}, "ingest": None}, SCHEMA)
