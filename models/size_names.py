"""The names of a builder's size options, read from its source, so that a recipe is checked without importing torch."""

import ast
from importlib.util import find_spec
from pathlib import Path


def size_names(reference: str) -> set[str]:
    """Return the names of the keyword-only parameters of a builder, with those that `forwards_sizes_to` adds.

    Args:
        reference: `module:function` of a builder, or `module:class` of a config.
    """
    module, name = reference.split(":")
    if name == "PreTrainedConfig":
        return set()  # the fields of every config are no sizes
    for node in ast.parse(Path(str(find_spec(module).origin)).read_text(encoding="utf-8")).body:  # type: ignore[union-attr]
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return size_names(f"{node.module}:{name}")
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return _own_names(node).union(*(size_names(f"{module}:{source}") for source in _sources(node)))
    raise LookupError(f"{reference}: not defined")


def _own_names(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    if isinstance(node, ast.FunctionDef):
        return {argument.arg for argument in node.args.kwonlyargs}
    return {field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}  # type: ignore[union-attr]


def _sources(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """The functions and classes whose names count as well: base classes, and the target of `forwards_sizes_to`."""
    if isinstance(node, ast.ClassDef):
        return [base.id for base in node.bases if isinstance(base, ast.Name)]
    calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
    return [call.args[0].id for call in calls if call.func.id == "forwards_sizes_to"]  # type: ignore[attr-defined]
