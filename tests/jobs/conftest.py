"""A cluster of this process for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.fake_cluster import Cluster


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster that this process is a step of."""
    made = Cluster(tmp_path / "cluster")
    for name, value in made.environment().items():
        if name.startswith(("VLMFLOW_", "KUBE")):
            monkeypatch.setenv(name, value)
    yield made
    made.close()
