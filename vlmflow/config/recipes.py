"""A recipe: YAML with a section per step, read strictly into the dataclass that the step owns.

YAML owns the values, the dataclass owns the meaning. A section is read with `load`:

    @dataclass(frozen=True, kw_only=True)
    class Curation:
        min_side: int = 16

        def __post_init__(self):
            if self.min_side < 1:
                raise ValueError("min_side must be at least 1")

    curation = recipe.load(Curation, text, "curate")
"""

import dataclasses
import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from vlmflow.errors import RecipeError

T = TypeVar("T")


def parse(recipe: str | Path) -> dict[str, Any]:
    """Read a recipe into a plain mapping.

    Args:
        recipe: the path of a YAML file, or the YAML text itself (what a pipeline passes to its steps).

    Raises:
        RecipeError: no such file, not YAML, or not a mapping of sections.
    """
    text, name = str(recipe), "recipe"
    if "\n" not in text and text.endswith((".yaml", ".yml")):
        name = text
        try:
            text = Path(text).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RecipeError(f"{name}: no such recipe; the ones that ship are in recipes/") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{name}: cannot be read: {error}") from None
    try:
        sections = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(sections, dict):
        raise RecipeError(f"{name}: a recipe is a mapping of sections, got {sections!r}")
    return sections


def override(sections: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply `section.key=value` assignments; the value is YAML, and `null` takes a section away: its defaults stand.

    Raises:
        RecipeError: an assignment without `=`, or a path through something that is not a mapping.
    """
    sections = yaml.safe_load(yaml.safe_dump(sections))
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment}: write section.key=value")
        *parents, key = path.split(".")
        place = sections
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise RecipeError(f"--set {assignment}: {parent!r} is a value, not a section")
        try:
            place[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {assignment}: {value!r} is not YAML") from None
    return sections


def changed(sections: dict[str, Any], name: str, change: str) -> dict[str, Any]:
    """The recipe with some values of section `name` replaced.

    Args:
        change: a mapping from paths within the section to values, as JSON; "" changes nothing.

    Raises:
        RecipeError: it is no such mapping.
    """
    try:
        values = dict(json.loads(change or "{}"))
    except (TypeError, ValueError):
        raise RecipeError(
            f'{name}: change {change!r} is no JSON mapping, such as {{"training.learning_rate": 0.001}}'
        ) from None
    return override(sections, [f"{name}.{path}={json.dumps(value)}" for path, value in values.items()])


def dump(sections: dict[str, Any]) -> str:
    """Write the recipe as text; the same sections give the same text."""
    return yaml.safe_dump(sections, sort_keys=True, allow_unicode=True)


def section(recipe: str | Path | dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return section `name` as it stands, or None where the recipe leaves it out."""
    sections = recipe if isinstance(recipe, dict) else parse(recipe)
    return sections.get(name)


def load(cls: type[T], recipe: str | Path | dict[str, Any], name: str) -> T:
    """Read section `name` of `recipe` into the dataclass `cls`; an absent section means all defaults.

    The recipe's top-level `seed` fills a field of that name which the section does not set.

    Raises:
        RecipeError: an unknown key, a wrong type or an impossible value.
    """
    sections = recipe if isinstance(recipe, dict) else parse(recipe)
    values = sections.get(name)
    if values is None:
        values = {}
    if isinstance(values, dict) and "seed" in {f.name for f in dataclasses.fields(cls)}:  # type: ignore[arg-type]
        values = {"seed": sections.get("seed", 0), **values}
    return _build(cls, values, name)


def call(function: Callable[..., T], *given: Any, values: dict[str, Any], where: str) -> T:
    """`function(*given, **values)`: a section whose keys are a function's keyword-only parameters.

    What a function with `**more` hands on is for that one to judge.

    Raises:
        RecipeError: an unknown key, a wrong type or an impossible value.
    """
    from huggingface_hub.errors import StrictDataclassError  # what transformers' configs judge with

    hints, parameters = typing.get_type_hints(function), inspect.signature(function).parameters.values()
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        _check_keys(values, known, where)
    taken = {k: _convert(hints[k], v, f"{where}.{k}") if k in known else v for k, v in values.items()}
    try:
        return function(*given, **taken)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise RecipeError(f"{where}: {' '.join(str(error).split())}") from error


def _check_keys(values: dict[str, Any], known: Collection[str], where: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)
            raise RecipeError(
                f"{where}.{key}: no such key (value {values[key]!r}); the nearest is {near[0]!r}, "
                f"all: {', '.join(sorted(known))}"
            )


def _build(cls: type[T], values: Any, where: str) -> T:
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: expected a mapping, got {values!r}")
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    _check_keys(values, known, where)
    given = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    for key, field in known.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in given:
            raise RecipeError(f"{where}.{key}: must be given ({_name(hints[key])})")
    try:
        return cls(**given)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wrong = RecipeError(f"{where}: expected {_name(hint)}, got {value!r}")
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        for option in arguments:
            try:
                return _convert(option, value, where)
            except RecipeError as error:
                if dataclasses.is_dataclass(option) and isinstance(value, dict):
                    raise error
        raise wrong
    if origin is typing.Literal:
        if value in arguments:
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1, cutoff=0)
        raise RecipeError(f"{where}: {value!r} is none of {', '.join(map(str, arguments))}; nearest: {near[0]}")
    if dataclasses.is_dataclass(hint):
        return _build(hint, {} if value is None else value, where)  # type: ignore[arg-type]
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            raise wrong
        items = (_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        return tuple(items) if origin is tuple else list(items)
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong
        return {str(k): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is type(None):
        if value is None:
            return None
        raise wrong
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a string
        except (TypeError, ValueError):
            raise wrong from None
    if hint is int and isinstance(value, bool):
        raise wrong
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise wrong


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
