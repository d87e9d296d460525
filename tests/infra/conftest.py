"""Access to the manifests, as files and as built by kustomize."""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import server_side_apply
from vlmflow.runtime.code_hash import ROOT

INFRA = ROOT / "infra"
OVERLAYS = ("local", "production")

Manifest = dict[str, Any]
RELEASED: dict[str, list[Manifest]] = yaml.safe_load((Path(__file__).parent / "released.yaml").read_text())


@cache
def build(tree: str) -> list[Manifest]:
    """Return the manifests that `kubectl kustomize infra/TREE` prints; TREE may also be an absolute path."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed, so the overlays cannot be built")
    done = subprocess.run(["kubectl", "kustomize", INFRA / tree], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # a deprecated field is a warning
    return list(yaml.safe_load_all(done.stdout))


@cache
def build_production_with_components() -> list[Manifest]:
    """Return the manifests of the overlay `production` with its optional components, as its comments say."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(INFRA, Path(folder) / "infra")
        file = copy / "overlays/production/kustomization.yaml"
        file.write_text(file.read_text().replace("\n# - ", "\n  - "))
        return build(str(copy / "overlays/production"))


def rayjob() -> Manifest:
    """Return the template of the RayJob of the step `curate`, which no overlay contains."""
    return yaml.safe_load((INFRA / "ray" / "rayjob.yaml").read_text())


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """Return the only object with this kind and name."""
    (manifest,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    return manifest


def as_applied(manifest: Manifest) -> Manifest:
    """Return the object in the cluster: for an object of a released component, ours sets only some of the fields."""
    same = [m for manifests in RELEASED.values() for m in manifests
            if all(m[key] == manifest[key] for key in ("apiVersion", "kind"))
            and m["metadata"]["name"] == manifest["metadata"]["name"]]  # fmt: skip
    return server_side_apply.apply(same[0], manifest, {}, "vlmflow", force=True)[0] if same else manifest
