"""The fake server-side apply: owners, conflicts and removed fields, as documented by Kubernetes."""

from typing import Any

import pytest

from tests.deploy.server_side_apply import Conflict, Owners, apply, managed_fields


def config(**data: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}


def applied(*steps: tuple[str, dict[str, Any]], force: bool = True) -> tuple[dict[str, Any], Owners]:
    """Return the object and its owners after each (manager, config) in turn."""
    live: dict[str, Any] = {}
    owners: Owners = {}
    for manager, manifest in steps:
        live, owners = apply(live, manifest, owners, manager, force)
    return live, owners


@pytest.mark.parametrize(
    ("steps", "data"),
    [
        ([("a", config(x="1", y="2")), ("a", config(x="1"))], {"x": "1"}),  # no longer sent: removed
        ([("a", config(x="1", y="2")), ("b", config(z="3"))], {"x": "1", "y": "2", "z": "3"}),
        ([("a", config(x="1")), ("b", config(x="1")), ("a", config(y="2"))], {"x": "1", "y": "2"}),  # b owns it too
        ([("a", config(x="1")), ("b", config(x="2")), ("a", config(y="3"))], {"x": "2", "y": "3"}),  # a lost it to b
        ([("a", config(x="1")), ("b", config(x="2")), ("b", config(y="3"))], {"y": "3"}),  # nobody owns it any more
        ([("a", config(list=[1, 2])), ("b", config(list=[3]))], {"list": [3]}),  # atomic
    ],
)
def test_fields_stay_while_a_manager_owns_them(steps: list[tuple[str, dict[str, Any]]], data: dict[str, Any]) -> None:
    assert applied(*steps)[0]["data"] == data


def test_items_of_a_list_with_keys_are_owned_separately() -> None:
    def pod(*containers: dict[str, Any]) -> dict[str, Any]:
        return {"kind": "Pod", "spec": {"containers": list(containers)}}

    first, second = {"name": "one", "image": "a", "env": [{"name": "X", "value": "1"}]}, {"name": "two", "image": "b"}
    ours = {"name": "one", "env": [{"name": "Y", "value": "2"}]}
    live, _ = applied(("a", pod(first, second)), ("b", pod(ours)), ("a", pod(first)))
    assert live["spec"]["containers"] == [{**first, "env": [*first["env"], *ours["env"]]}]


def test_another_value_of_another_manager_is_a_conflict() -> None:
    steps = ("kubectl", config(x="1", y="2")), ("vlmflow", config(x="3"))
    with pytest.raises(Conflict, match=r'Apply failed with 1 conflict: conflict with "kubectl": \.data\.x$'):
        applied(*steps, force=False)
    live, owners = applied(*steps)
    assert live["data"] == {"x": "3", "y": "2"}
    entries = {entry["manager"]: entry["fieldsV1"] for entry in managed_fields(owners, "v1")}
    assert entries == {"kubectl": {"f:data": {"f:y": {}}}, "vlmflow": {"f:data": {"f:x": {}}}}
