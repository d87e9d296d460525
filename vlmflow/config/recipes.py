"""Reading a recipe: YAML with a section for each step, validated strictly.

A section is a class derived from `Section`, and is read with `load`:

    curate = recipes.load(CurateConfig, text, "curate")

Every mistake in a recipe is a RecipeError of one line that names section and key, the value, and what is accepted.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from vlmflow.config.nearest import nearest
from vlmflow.config.section import Section, UnknownKeyError, bounds, from_yaml, is_section, type_name, union_members
from vlmflow.config.strict_yaml import parse_yaml
from vlmflow.errors import RecipeError

S = TypeVar("S", bound=Section)
T = TypeVar("T")


def parse(recipe: str | Path) -> dict[str, Any]:
    """Read a recipe into a plain mapping.

    Args:
        recipe: the path of a YAML file, or the YAML text itself (what a pipeline passes to its steps).

    Raises:
        RecipeError: the file is missing, not YAML, or not a mapping of sections.
    """
    text, name = str(recipe), "recipe"
    if "\n" not in text and text.endswith((".yaml", ".yml")):
        name = text
        try:
            text = Path(text).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RecipeError(f"{name}: no such recipe; the shipped ones are in recipes/") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{name}: cannot be read: {error}") from None
    try:
        sections = parse_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not YAML: {_one_line(error)}") from None
    if not isinstance(sections, dict):
        raise RecipeError(f"{name}: expected a mapping of sections, got {sections!r}")
    return sections


def override(sections: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply `section.key=value` assignments to a copy of the recipe.

    The value is YAML. `section=null` leaves the section's step out.

    Raises:
        RecipeError: an assignment without `=`, or a path through something that is not a mapping.
    """
    sections = yaml.safe_load(yaml.safe_dump(sections))
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment}: write section.key=value")
        *parents, key = path.split(".")
        mapping = sections
        for parent in parents:
            if mapping.get(parent) is None:
                mapping[parent] = {}
            mapping = mapping[parent]
            if not isinstance(mapping, dict):
                raise RecipeError(f"--set {assignment}: {parent!r} is a value, not a section")
        try:
            mapping[key] = parse_yaml(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {assignment}: {value!r} is not YAML") from None
    return sections


def changed(sections: dict[str, Any], name: str, change: str) -> dict[str, Any]:
    """Replace some values of section `name` in a copy of the recipe.

    Args:
        change: a JSON mapping from paths within the section to values; "" changes nothing.

    Raises:
        RecipeError: `change` is not such a mapping.
    """
    try:
        values = dict(json.loads(change or "{}"))
    except (TypeError, ValueError):
        raise RecipeError(
            f'{name}: change {change!r} is not a JSON mapping; write, for example, {{"training.learning_rate": 0.001}}'
        ) from None
    return override(sections, [f"{name}.{path}={json.dumps(value)}" for path, value in values.items()])


def dump(sections: dict[str, Any]) -> str:
    """Write the recipe as text; equal sections give equal text."""
    return yaml.safe_dump(sections, sort_keys=True, allow_unicode=True)


def section(recipe: str | Path | dict[str, Any], name: str) -> dict[str, Any] | None:
    """Return the raw values of section `name`, or None if the recipe has no such section."""
    sections = recipe if isinstance(recipe, dict) else parse(recipe)
    return sections.get(name)


def is_null(recipe: str | Path | dict[str, Any], name: str) -> bool:
    """Return whether section `name` is null, which leaves its step out; a missing section is not null."""
    sections = recipe if isinstance(recipe, dict) else parse(recipe)
    return name in sections and sections[name] is None


def load(cls: type[S], recipe: str | Path | dict[str, Any], name: str) -> S:
    """Validate section `name` of `recipe` against `cls`; a missing section has all defaults.

    The recipe's top-level `seed` is the default of the section's field `seed`.

    Raises:
        RecipeError: an unknown key, a wrong type or an impossible value.
    """
    sections = recipe if isinstance(recipe, dict) else parse(recipe)
    values = sections.get(name)
    if values is None:
        values = {}
    if isinstance(values, dict) and "seed" in cls.model_fields:
        values = {"seed": sections.get("seed", 0), **values}
    try:
        return cls.model_validate(from_yaml(cls, values))
    except ValidationError as error:
        raise RecipeError(_explain(error, cls, name)) from None


def call(function: Callable[..., T], *arguments: Any, values: dict[str, Any], where: str) -> T:
    """Call `function(*arguments, **values)`, where `values` come from a recipe.

    The keyword-only parameters of the signature are the valid keys, and their annotations the types.

    Raises:
        RecipeError: an unknown key, a wrong type, or a value that the function refuses with a ValueError.
    """
    from huggingface_hub.errors import StrictDataclassError  # raised by the config classes of transformers

    parameters = inspect.signature(function, eval_str=True).parameters.values()
    types = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    if unknown := [key for key in values if key not in types]:
        raise RecipeError(_unknown_key(where, unknown[0], values[unknown[0]], types))
    if missing := [p.name for p in parameters if p.name in types and p.default is p.empty and p.name not in values]:
        raise RecipeError(f"{where}.{missing[0]}: required ({type_name(types[missing[0]])})")
    converted = {key: _convert(types[key], value, f"{where}.{key}") for key, value in values.items()}
    try:
        return function(*arguments, **converted)
    except (ValueError, StrictDataclassError) as error:
        raise RecipeError(f"{where}: {_one_line(error)}") from error


def _convert(annotation: Any, value: Any, path: str) -> Any:
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True)).validate_python(from_yaml(annotation, value))
    except ValidationError:
        raise RecipeError(_wrong_type(path, annotation, value)) from None


def _explain(error: ValidationError, cls: type[Section], where: str) -> str:
    """Describe the first mistake in one line; unknown keys come first, because other errors often follow from them."""
    mistake = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    kind, value, location = mistake["type"], mistake["input"], list(mistake["loc"])
    if kind in ("extra_forbidden", "missing"):
        key = str(location.pop())
        path, annotation, _ = _locate(cls, where, location)
        known = _section_in(annotation).model_fields
        if kind == "missing":
            return f"{path}.{key}: required ({type_name(known[key].annotation)})"
        return _unknown_key(path, key, value, known)
    path, annotation, metadata = _locate(cls, where, location)
    cause = mistake.get("ctx", {}).get("error")
    if isinstance(cause, UnknownKeyError):
        return _unknown_key(path, cause.key, cause.value, cause.known)
    if kind == "value_error":
        return f"{path}: {_one_line(cause or mistake['msg'])}"
    if kind.startswith(("greater_than", "less_than")) and (limits := bounds(metadata)):
        return f"{path}: must be {limits}{' or null' if NoneType in union_members(annotation) else ''}, got {value!r}"
    if kind in ("too_short", "string_too_short"):
        return f"{path}: must not be empty"
    return _wrong_type(path, annotation, value)


def _locate(cls: type[Section], path: str, location: list[int | str]) -> tuple[str, Any, Any]:
    """Follow an error's location: its path in the recipe, and the type and bounds there.

    Pydantic's location also names the members of unions; these are not part of the path.
    """
    annotation, metadata = cls, []
    for item in location:
        if isinstance(item, int):
            path, annotation, metadata = f"{path}[{item}]", get_args(annotation)[0], []
        elif section := _section_in(annotation):
            field = section.model_fields[item]
            path, annotation, metadata = f"{path}.{item}", field.annotation, field.metadata
        elif get_origin(annotation) is dict:
            path, annotation, metadata = f"{path}.{item}", get_args(annotation)[1], []
    return path, annotation, metadata


def _section_in(annotation: Any) -> Any:
    return next((option for option in union_members(annotation) if is_section(option)), None)


def _unknown_key(where: str, key: object, value: Any, known: Any) -> str:
    return f"{where}.{key}: no such key (value {value!r}); {nearest(key, known)}, all: {', '.join(sorted(known))}"


def _wrong_type(path: str, annotation: Any, value: Any) -> str:
    if get_origin(annotation) is Literal:
        known = get_args(annotation)
        return f"{path}: {value!r} is none of {', '.join(map(str, known))}; {nearest(value, known)}"
    expected = "a mapping" if is_section(annotation) else type_name(annotation)
    return f"{path}: expected {expected}, got {value!r}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
