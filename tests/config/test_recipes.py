"""Recipes are read strictly: a mistake stops before anything runs, by name."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from components.plan.sections import check
from vlmflow.config import recipes
from vlmflow.errors import RecipeError
from vlmflow.runtime.code_hash import ROOT


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int = 3
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


def test_a_section_becomes_its_dataclass() -> None:
    text = "seed: 7\nouter: {count: 5, kind: b, names: [x, y], inner: {rate: 1e-3}}\n"
    assert recipes.load(Outer, text, "outer") == Outer(
        count=5, kind="b", names=("x", "y"), inner=Inner(rate=0.001), seed=7
    )
    assert recipes.load(Outer, "seed: 7\n", "outer").seed == 7


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{cuont: 5}", r"outer\.cuont: no such key \(value 5\); the nearest is 'count'"),
        ("{count: five}", r"outer\.count: expected int, got 'five'"),
        ("{count: true}", r"outer\.count: expected int"),
        ("{count: 0}", r"outer: count must be at least 1, got 0"),
        ("{kind: c}", r"outer\.kind: 'c' is none of a, b"),
        ("{inner: {rat: 1}}", r"outer\.inner\.rat: no such key"),
        ("[1]", r"outer: expected a mapping"),
    ],
)
def test_a_mistake_is_named(section: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.load(Outer, f"outer: {section}\n", "outer")


def made(texts: list[str], *, width: int = 4, rate: float = 0.5, shares: Sequence[float] = ()) -> dict[str, Any]:
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    return {"texts": texts, "width": width, "rate": rate, "shares": shares}


def test_a_section_becomes_the_arguments_of_a_function() -> None:
    found = recipes.call(made, ["a"], values={"rate": 2, "shares": [1, "1e-3"]}, where="model")
    assert found == {"texts": ["a"], "width": 4, "rate": 2.0, "shares": [1.0, 0.001]}
    assert isinstance(found["rate"], float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 3}, r"^model\.widht: no such key \(value 3\); the nearest is 'width'"),
        ({"width": 0.5}, r"^model\.width: expected int, got 0\.5"),
        ({"shares": 1}, r"^model\.shares: expected"),
        ({"width": 0}, r"^model: width must be at least 1, got 0"),
    ],
)
def test_a_mistake_in_the_arguments_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.call(made, [], values=values, where="model")


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
def test_a_change_that_is_no_mapping(change: str) -> None:
    with pytest.raises(RecipeError, match="pretrain: change .* is no JSON mapping"):
        recipes.changed({}, "pretrain", change)
    assert recipes.changed({"a": 1}, "a", "") == {"a": 1}


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        recipes.parse(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(RecipeError, match="not YAML"):
        recipes.parse(tmp_path / "bad.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_that_ships_loads(path: Path) -> None:
    check(recipes.parse(path))


def test_an_unknown_section_is_named() -> None:
    with pytest.raises(RecipeError, match="grund: no such section; the nearest is 'ground'"):
        check({"grund": {}})
