"""The base class of a recipe's sections, and its types in words for error messages and the generated reference.

    class CurateConfig(Section):
        \"\"\"One sentence: what the section configures.\"\"\"

        min_side: int = Field(16, ge=1, description="Shortest side of an image, in pixels.")

A field's description gives its meaning, its unit, and what null, 0 or empty means. Bounds stand in `Field`; rules that
concern several fields are validators of the class.
"""

import types
from collections.abc import Collection
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo


class UnknownKeyError(ValueError):
    """A key that a validator of a section refuses because it is none of the valid ones."""

    def __init__(self, key: str, value: Any, known: Collection[str]) -> None:
        super().__init__(key)
        self.key, self.value, self.known = key, value, known


class Section(BaseModel):
    """A section of a recipe: immutable, and strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _read_yaml(cls, value: Any, info: ValidationInfo) -> Any:
        return from_yaml(cls.model_fields[str(info.field_name)].annotation, value)


def check_keys(values: dict[str, Any], known: Collection[str]) -> None:
    """Refuse keys that are not in `known`, in a validator of a field.

    Raises:
        UnknownKeyError: names the first such key.
    """
    for key, value in values.items():
        if key not in known:
            raise UnknownKeyError(key, value, known)


def is_section(annotation: Any) -> bool:
    """Whether a type is a section."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def from_yaml(annotation: Any, value: Any) -> Any:
    """Convert a value of YAML to the types that YAML lacks; any other mismatch of types is left for the validation.

    Lists become tuples where the type is a tuple. A section without values is an empty mapping. Keys of mappings
    become text. Text becomes a float where the type is float, because YAML 1.1 reads 1e-3 as text.
    """
    options = [_bare(option) for option in union_members(annotation)]
    if value is None and is_section(options[0]) and len(options) == 1:
        return {}
    if isinstance(value, str) and float in options and str not in options:
        try:
            return float(value)
        except ValueError:
            return value
    for option in options:
        if is_section(option) and isinstance(value, dict):
            return {str(key): item for key, item in value.items()}
        origin, arguments = get_origin(option), get_args(option)
        if origin is dict and isinstance(value, dict):
            return {str(key): from_yaml(arguments[1], item) for key, item in value.items()}
        if origin not in (None, dict, Literal) and isinstance(value, list):
            items = [from_yaml(arguments[0], item) for item in value]
            return tuple(items) if origin is tuple else items
    return value


def type_name(annotation: Any) -> str:
    """Describe a type in words: `float or null`, `list of str`, `one of a, b`, `otsu or float (from -1 to 1)`."""
    options = union_members(annotation)
    names = [_option_name(option) for option in options if option is not types.NoneType]
    return " or ".join(names + ["null"] * (types.NoneType in options))


def bounds(metadata: Any) -> str:
    """Describe the bounds of a field in words: `at least 1`, `from 0 to 1`, `above 0 and below 1`; "" without any."""
    items = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    limits = {name: getattr(item, name) for item in items for name in _WORDS if hasattr(item, name)}
    if "ge" in limits and len(limits) == 2:
        below = "below " if "lt" in limits else ""
        return f"from {limits['ge']} to {below}{limits.get('lt', limits.get('le'))}"
    return " and ".join(f"{word} {limits[name]}" for name, word in _WORDS.items() if name in limits)


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for option in get_args(annotation) for member in union_members(option))
    return (annotation,)


_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _option_name(option: Any) -> str:
    origin, arguments = get_origin(option), get_args(option)
    if origin is Annotated:
        return f"{type_name(arguments[0])} ({bounds(option.__metadata__)})"
    if origin is Literal:
        values = [str(value) if value != "" else '""' for value in arguments]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    if is_section(option) or option is dict:
        return "mapping"
    if origin is dict:
        return f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}"
    if origin is not None:
        return f"list of {type_name(arguments[0])}"
    return "any value" if option is Any else getattr(option, "__name__", str(option))
