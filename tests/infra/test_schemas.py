"""Every manifest matches its schema: built-in kinds and those of KServe, Trainer and KubeRay."""

import copy
import json
import re
from functools import cache
from typing import Any

import kubernetes_validate
import pytest

from tests.conftest import SHARED
from tests.infra.conftest import (
    INFRA,
    OVERLAYS,
    Manifest,
    as_applied,
    build,
    build_production_with_components,
    find,
    rayjob,
)

TREES = (*(f"overlays/{name}" for name in OVERLAYS), "overlays/production/profile", "kserve/knative")
KUBERNETES = re.search(r"^KIND_NODE=kindest/node:v([\d.]+)@", (INFRA / "versions.env").read_text(), re.M)[1]  # type: ignore[index]


def is_custom(manifest: Manifest) -> bool:
    group = manifest["apiVersion"].rpartition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


@cache
def validator(api_version: str, kind: str) -> Any:
    import jsonschema

    file = SHARED / "schemas" / f"{api_version.replace('/', '_')}_{kind}.json"
    if not SHARED.exists():
        pytest.skip("the schemas of the custom resources are not available")
    return jsonschema.Draft202012Validator(json.loads(file.read_text()))


def schema_errors(manifest: Manifest) -> list[str]:
    """Return the reasons why the API server would reject a manifest."""
    if is_custom(manifest):
        return [error.message for error in validator(manifest["apiVersion"], manifest["kind"]).iter_errors(manifest)]
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    return []


@pytest.mark.parametrize("tree", TREES)
def test_built_in_kinds_match_their_schemas(tree: str) -> None:
    checked = [manifest for manifest in build(tree) if not is_custom(manifest)]
    assert checked
    for manifest in checked:
        assert schema_errors(manifest) == [], (manifest["kind"], manifest["metadata"]["name"])


def test_the_optional_components_match_their_schemas() -> None:
    for manifest in build_production_with_components():
        assert is_custom(manifest) or schema_errors(manifest) == [], (manifest["kind"], manifest["metadata"]["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_custom_kinds_match_their_schemas(overlay: str) -> None:
    checked = [manifest for manifest in [*build(f"overlays/{overlay}"), rayjob()] if is_custom(manifest)]
    assert {m["kind"] for m in checked} == {"ClusterStorageContainer", "TrainingRuntime", "RayJob"}
    for manifest in map(as_applied, checked):
        assert schema_errors(manifest) == [], (manifest["kind"], manifest["metadata"]["name"])


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("Deployment", "mlflow", ("spec", "template", "spec")),
        ("NetworkPolicy", "default-deny", ("spec",)),
        ("RayJob", "curate", ("spec", "rayClusterSpec")),
        ("TrainingRuntime", "vlmflow-torch", ("spec", "mlPolicy")),
    ],
)
def test_a_misspelt_field_is_rejected(kind: str, name: str, path: tuple[str, ...]) -> None:
    manifest = copy.deepcopy(find([*build("overlays/local"), rayjob()], kind, name))
    node = manifest
    for key in path:
        node = node[key]
    node["misspelt"] = "x"
    assert any("misspelt" in error for error in schema_errors(manifest))
