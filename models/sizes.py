"""Keyword arguments that a builder passes on: `**sizes` of its signature, by name and type."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from transformers import PreTrainedConfig

F = TypeVar("F", bound=Callable[..., Any])


def forwards_sizes_to(target: Callable[..., Any]) -> Callable[[F], F]:
    """Extend the signature of a builder by the keyword arguments of `target`, which receives the builder's `**sizes`.

    A recipe is checked against the signature, so that an unknown size is named before anything is built.

    Args:
        target: a function with keyword-only parameters, or a config class of which the fields that it declares count.
    """

    def decorate(builder: F) -> F:
        signature = inspect.signature(builder)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = [p for p in _keywords(target) if p.name not in signature.parameters]
        builder.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return builder

    return decorate


def _keywords(target: Callable[..., Any]) -> list[inspect.Parameter]:
    if isinstance(target, type) and issubclass(target, PreTrainedConfig):
        inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        return [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in dataclasses.fields(target)
            if field.name not in inherited
        ]
    return [p for p in inspect.signature(target).parameters.values() if p.kind is p.KEYWORD_ONLY]
