"""Recipes are validated strictly: every mistake is one line that names section, key, value and what is accepted."""

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from components.plan.sections import SECTIONS, check, config_class
from vlmflow.config import recipes
from vlmflow.config.section import Section
from vlmflow.errors import RecipeError
from vlmflow.runtime.code_hash import ROOT


class Inner(Section):
    rate: float = Field(default=0.1, ge=0, le=1, description="")


class Task(Section):
    name: str = Field(description="")


class Outer(Section):
    count: int = Field(default=3, ge=1, description="")
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    names: tuple[str, ...] = ()
    range: tuple[float, ...] = ()
    threshold: Literal["otsu"] | Annotated[float, Field(ge=-1, le=1)] = "otsu"
    limit: float | None = Field(default=None, gt=0, description="")
    quantity: str | int = 1
    labels: dict[str, str] = Field(default_factory=dict)
    inner: Inner = Field(default_factory=Inner)
    maybe: Inner | None = None
    several: tuple[Inner, ...] = ()
    tasks: tuple[Task, ...] = ()
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> "Outer":
        if self.count == 13:
            raise ValueError(f"count must not be {self.count}")
        return self


def load(section: str) -> Outer:
    return recipes.load(Outer, f"seed: 7\nouter: {section}\n", "outer")


def test_a_section_becomes_an_instance_of_its_class() -> None:
    assert load("{count: 5, kind: b, names: [x, y], inner: {rate: 1e-3}}") == Outer(
        count=5, kind="b", names=("x", "y"), inner=Inner(rate=0.001), seed=7
    )
    assert recipes.load(Outer, "seed: 7\n", "outer").seed == 7, "the recipe's seed is the default"
    assert load("{seed: 3}").seed == 3


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("{range: [1e-3, 2]}", "range", (0.001, 2.0)),  # 1e-3 is text in YAML 1.1; an int is a valid float
        ("{threshold: 1e-3}", "threshold", 0.001),
        ("{limit: 2}", "limit", 2.0),
        ("{quantity: '1e3'}", "quantity", "1e3"),  # text stays text where text is valid
        ("{names: [a]}", "names", ("a",)),
        ("{labels: {1: a}}", "labels", {"1": "a"}),
        ("{inner: }", "inner", Inner()),
        ("{maybe: }", "maybe", None),
        ("{maybe: {}}", "maybe", Inner()),
        ("{several: [{rate: 1}]}", "several", (Inner(rate=1.0),)),
    ],
)
def test_values_are_converted_to_the_types_that_yaml_lacks(section: str, key: str, value: Any) -> None:
    found = getattr(load(section), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{cuont: 5}", "outer.cuont: no such key (value 5); the nearest is 'count', all: count, flag, inner, "),
        ("{on: 5}", "outer.True: no such key (value 5); "),  # `on` is true in YAML 1.1
        ("{inner: {rat: 1}}", "outer.inner.rat: no such key (value 1); the nearest is 'rate', all: rate"),
        ("{maybe: {rat: 1}}", "outer.maybe.rat: no such key (value 1); the nearest is 'rate', all: rate"),
        ("{several: [{}, {rat: 1}]}", "outer.several[1].rat: no such key (value 1); the nearest is 'rate', all: rate"),
        ("{count: five}", "outer.count: expected int, got 'five'"),
        ("{count: '5'}", "outer.count: expected int, got '5'"),
        ("{count: 5.0}", "outer.count: expected int, got 5.0"),
        ("{count: true}", "outer.count: expected int, got True"),
        ("{count: null}", "outer.count: expected int, got None"),
        ("{flag: 1}", "outer.flag: expected bool, got 1"),
        ("{names: [1]}", "outer.names[0]: expected str, got 1"),
        ("{names: x}", "outer.names: expected list of str, got 'x'"),
        ("{labels: {a: 1}}", "outer.labels.a: expected str, got 1"),
        ("{range: [true]}", "outer.range[0]: expected float, got True"),
        ("{range: [a]}", "outer.range[0]: expected float, got 'a'"),
        ("{limit: a}", "outer.limit: expected float or null, got 'a'"),
        ("{threshold: a}", "outer.threshold: expected otsu or float (from -1 to 1), got 'a'"),
        ("{threshold: 3}", "outer.threshold: expected otsu or float (from -1 to 1), got 3"),
        ("{quantity: 0.5}", "outer.quantity: expected str or int, got 0.5"),
        ("{count: 0}", "outer.count: must be at least 1, got 0"),
        ("{limit: 0}", "outer.limit: must be above 0 or null, got 0"),
        ("{inner: {rate: 2}}", "outer.inner.rate: must be from 0 to 1, got 2"),
        ("{kind: c}", "outer.kind: 'c' is none of a, b; the nearest is 'b'"),
        ("{count: 13}", "outer: count must not be 13"),
        ("{tasks: [{}]}", "outer.tasks[0].name: required (str)"),
        ("{tasks: [{name: 1}]}", "outer.tasks[0].name: expected str, got 1"),
        ("{inner: 3}", "outer.inner: expected a mapping, got 3"),
        ("[1]", "outer: expected a mapping, got [1]"),
        ("{kind: c, cuont: 1}", "outer.cuont: no such key"),
    ],
)
def test_a_mistake_is_named_in_one_line(section: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(section)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_section_is_immutable_and_can_be_pickled() -> None:
    section = load("{several: [{rate: 1}]}")
    with pytest.raises(ValidationError, match="frozen"):
        section.count = 4  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(section)) == section
    assert recipes.load(Outer, {"outer": section.model_dump()}, "outer") == section


def build(texts: list[str], *, width: int = 4, rate: float = 0.5, shares: Sequence[float] = ()) -> dict[str, Any]:
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    return {"texts": texts, "width": width, "rate": rate, "shares": shares}


def test_a_section_becomes_the_arguments_of_a_function() -> None:
    found = recipes.call(build, ["a"], values={"rate": 2, "shares": [1, "1e-3"]}, where="model")
    assert found == {"texts": ["a"], "width": 4, "rate": 2.0, "shares": [1.0, 0.001]}
    assert isinstance(found["rate"], float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 3}, r"^model\.widht: no such key \(value 3\); the nearest is 'width'"),
        ({"texts": []}, r"^model\.texts: no such key"),
        ({"width": 0.5}, r"^model\.width: expected int, got 0\.5"),
        ({"shares": 1}, r"^model\.shares: expected list of float, got 1"),
        ({"width": 0}, r"^model: width must be at least 1, got 0"),
    ],
)
def test_a_mistake_in_the_arguments_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.call(build, [], values=values, where="model")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"pretrain": {"model": {"widht": 3}}}, r"^pretrain\.model\.widht: no such key \(value 3\); the nearest is '"),
        (
            {"pretrain": {"family": "ijepa", "model": {"momentun": 1}}},
            r"^pretrain\.model\.momentun: no such key \(value 1\); the nearest is 'momentum'",
        ),
        (
            {"caption": {"task": "caption", "family": "idefics3", "model": {"layer": 3}}},
            r"^caption\.model\.layer: no such key \(value 3\); the nearest is 'layers', all: heads, ",
        ),
        (
            {"caption": {"task": "caption", "family": "clip"}},
            r"^caption\.family: 'clip' is none of tiny-vlm, idefics3; the nearest is '",
        ),
    ],
)
def test_an_unknown_size_or_family_is_found_before_anything_runs(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(sections)


def test_checking_the_sizes_of_a_model_does_not_import_torch() -> None:
    code = (
        "import sys; from models.zoo import ZOO; "
        "assert all(family.build_sizes for family in ZOO.values()); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_bug_inside_a_function_is_not_a_mistake_of_the_recipe() -> None:
    def broken(*, width: int = 4) -> None:
        len(width)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="no len"):
        recipes.call(broken, values={"width": 3}, where="model")


def test_overrides_are_yaml_and_null_removes() -> None:
    sections = {"a": {"b": 1}, "c": {"d": 2}}
    assert recipes.override(sections, ["a.b=[1, 2]", "a.e.f=x", "c=null"]) == {
        "a": {"b": [1, 2], "e": {"f": "x"}},
        "c": None,
    }
    assert sections == {"a": {"b": 1}, "c": {"d": 2}}
    with pytest.raises(RecipeError, match="section.key=value"):
        recipes.override(sections, ["a.b"])
    with pytest.raises(RecipeError, match="'b' is a value"):
        recipes.override(sections, ["a.b.c=1"])


@pytest.mark.parametrize("change", ["a=1", "3", "[1]"])
def test_a_change_must_be_a_json_mapping(change: str) -> None:
    with pytest.raises(RecipeError, match="pretrain: change .* is not a JSON mapping"):
        recipes.changed({}, "pretrain", change)
    assert recipes.changed({"a": 1}, "a", "") == {"a": 1}


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        recipes.parse(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(RecipeError, match="not YAML"):
        recipes.parse(tmp_path / "bad.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    check(recipes.parse(path))


def test_an_unknown_section_is_named() -> None:
    with pytest.raises(RecipeError, match="grund: no such section; the nearest is 'ground'"):
        check({"grund": {}})
    with pytest.raises(RecipeError, match="seed: expected int, got True"):
        check({"seed": True})


@pytest.mark.parametrize("name", SECTIONS)
def test_the_defaults_of_a_section_are_valid(name: str) -> None:
    if name in ("caption", "finetune", "ground", "ocr", "sweep"):  # these have required values
        with pytest.raises(RecipeError):
            recipes.load(config_class(name), {}, name)
    else:
        section = recipes.load(config_class(name), {}, name)
        assert recipes.load(config_class(name), {name: section.model_dump()}, name) == section
