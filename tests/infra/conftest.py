"""The manifests as files and as kustomize builds them."""

import shutil
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from vlmflow.runtime.code_hash import ROOT

INFRA = ROOT / "infra"
OVERLAYS = ("local", "production")

Manifest = dict[str, Any]


@cache
def build(tree: str) -> list[Manifest]:
    """What `kubectl kustomize infra/TREE` prints."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not here to build the overlays")
    done = subprocess.run(["kubectl", "kustomize", INFRA / tree], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # a deprecated field is a warning
    return list(yaml.safe_load_all(done.stdout))


def rayjob() -> Manifest:
    """What the step `curate` makes its job of; it is not applied with the rest."""
    return yaml.safe_load((INFRA / "ray" / "rayjob.yaml").read_text())


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The one object of that kind and name."""
    (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    return found
