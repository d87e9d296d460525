"""Server-side apply as the API server implements it: which field manager owns which field, and what an apply removes.

Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/ and sigs.k8s.io/structured-merge-diff.

An object is flattened to its leaves: path → value. An item of an associative list has its keys as a path element; other
lists and the maps in `_ATOMIC` are one leaf. Not implemented: sets, defaults, updates other than applies.
"""

import copy
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
Path = tuple[Any, ...]
Owners = dict[str, set[Path]]  # field manager → the fields that it owns

_KEYS = {
    **dict.fromkeys(("containers", "initContainers", "env", "volumes", "replicatedJobs"), ("name",)),
    "volumeMounts": ("mountPath",),
    "ports": ("containerPort", "port", "protocol"),
}
_ATOMIC = {"selector", "podSelector", "namespaceSelector", "nodeSelector", "secretKeyRef", "configMapKeyRef"}
_UNOWNED = {("apiVersion",), ("kind",), *(("metadata", key) for key in ("name", "namespace", "resourceVersion"))}


class Conflict(Exception):
    """Other managers own fields with other values: one (manager, path) for each of them."""

    def __init__(self, conflicts: list[tuple[str, Path]]):
        self.conflicts = conflicts
        listed = "\n".join(f'conflict with "{manager}": {dotted(path)}' for manager, path in conflicts)
        plural = "s" if len(conflicts) > 1 else ""
        separator = "\n" if len(conflicts) > 1 else " "
        super().__init__(f"Apply failed with {len(conflicts)} conflict{plural}:{separator}{listed}")


def apply(live: Object, config: Object, owners: Owners, manager: str, force: bool) -> tuple[Object, Owners]:
    """Return the object and the owners of its fields after `manager` has applied `config`.

    Fields that the manager owned and no longer sends are removed, unless another manager owns them too.

    Raises:
        Conflict: another manager owns a field with another value, and `force` is false.
    """
    old, new = dict(leaves(live)), dict(leaves(config))
    others = {name: paths for name, paths in owners.items() if name != manager}
    conflicts = [(name, path) for name, paths in others.items() for path in sorted(paths & set(new), key=str)
                 if old.get(path) != new[path]]  # fmt: skip
    if conflicts and not force:
        raise Conflict(conflicts)
    dropped = owners.get(manager, set()) - set(new) - {path for paths in others.values() for path in paths}
    lost = {path for _, path in conflicts}
    merged = {path: value for path, value in old.items() if path not in dropped} | new
    return _build(merged), {**{name: paths - lost for name, paths in others.items()}, manager: set(new) - _UNOWNED}


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the paths and values of the fields that can be owned separately."""
    keys = _KEYS.get(path[-1], ()) if path and isinstance(path[-1], str) else ()
    if isinstance(value, dict) and value and not (path and path[-1] in _ATOMIC):
        for name, item in value.items():
            yield from leaves(item, (*path, name))
    elif isinstance(value, list) and value and keys and all(isinstance(item, dict) for item in value):
        for item in value:
            yield from leaves(item, (*path, tuple((key, item[key]) for key in keys if key in item)))
    else:
        yield path, value


def dotted(path: Path) -> str:
    """Return a path as the API server prints it, such as .spec.containers[name="a"].image."""
    parts = (f".{part}" if isinstance(part, str) else f"[{','.join(f'{k}={v!r}' for k, v in part)}]" for part in path)
    return "".join(parts).replace("'", '"')


def managed_fields(owners: Owners, api_version: str) -> list[Object]:
    """Return `metadata.managedFields` of an object."""
    entries = []
    for manager, paths in owners.items():
        tree: Object = {}
        for path in sorted(paths, key=str):
            node = tree
            for part in path:
                node = node.setdefault(f"f:{part}" if isinstance(part, str) else f"k:{dict(part)}", {})
        entry = {"manager": manager, "operation": "Apply", "apiVersion": api_version, "fieldsType": "FieldsV1"}
        entries.append({**entry, "fieldsV1": tree})
    return entries


def _build(flat: dict[Path, Any]) -> Object:
    """Return the object with these leaves."""
    root: Object = {}
    for path, value in flat.items():
        if value == {} and any(other[: len(path)] == path and other != path for other in flat):
            continue  # an empty map that has got fields
        node: Any = root
        for part, following in zip(path, (*path[1:], None), strict=True):
            if following is None:
                node[part] = copy.deepcopy(value)
            elif isinstance(part, str):
                node = node.setdefault(part, [] if isinstance(following, tuple) else {})
            else:
                items = [item for item in node if all(item.get(key) == wanted for key, wanted in part)]
                if not items:
                    items = [dict(part)]
                    node.append(items[0])
                node = items[0]
    return root
