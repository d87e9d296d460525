"""A fake cluster for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.fake_job_cluster import JobCluster


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobCluster]:
    """The cluster of this process, which acts as a step."""
    made = JobCluster(tmp_path / "cluster")
    for name, value in made.environment().items():
        if name.startswith(("VLMFLOW_", "KUBE")):
            monkeypatch.setenv(name, value)
    yield made
    made.close()
