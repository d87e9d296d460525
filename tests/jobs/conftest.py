"""A fake cluster for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.fake_job_cluster import JobCluster


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobCluster]:
    """A fake cluster; this process gets the environment of a step's pod."""
    job_cluster = JobCluster(tmp_path / "cluster")
    for name, value in job_cluster.environment().items():
        if name.startswith(("VLMFLOW_", "KUBE")):
            monkeypatch.setenv(name, value)
    yield job_cluster
    job_cluster.close()
