"""Curation as a RayJob: its manifest, and its entrypoint with Ray on this machine."""

import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from PIL import Image

from components.curate.config import CurateConfig
from components.curate.curation import curate
from tests.jobs.fake_job_cluster import JobCluster
from vlmflow.artifacts import dataset
from vlmflow.config import recipes
from vlmflow.errors import RecipeError, ServiceError
from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.jobs.rayjob import LABEL, TEMPLATE, manifest

SCHEMA = ROOT.parent / "shared" / "schemas" / "ray.io_v1_RayJob.json"
OUT = ("curated", "ledger", "funnel", "scorer")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """12 images: one occurs twice, and one is blank."""
    rows = []
    for i in (*range(11), 3):
        noise = np.random.default_rng(i).integers(0, 255, (4, 4, 3), np.uint8) * (i != 7)
        buffer = io.BytesIO()
        Image.fromarray(noise.astype(np.uint8)).resize((32, 32)).save(buffer, "PNG")
        row = {"image": buffer.getvalue(), "caption": f"pattern {i}", "width": 32, "height": 32, "uid": str(len(rows))}
        more = {"source": "", "licence": "", "split": "train", "label": "", "regions": [], "lines": []}
        rows.append({**row, **more})
    dataset.write(tmp_path / "raw", "pairs", rows)
    return tmp_path / "raw"


def curate_captions(raw: Path, folder: Path, **section: Any) -> dict[str, str]:
    """Curate `raw` and return the captions of the kept pairs by uid."""
    folder.mkdir()
    curate(raw, *(folder / name for name in OUT), recipes.load(CurateConfig, {"curate": section}, "curate"))  # type: ignore[call-arg]
    return {row["uid"]: row["caption"] for row in dataset.Dataset(folder / "curated").rows(["uid", "caption"])}


def test_a_rayjob_keeps_the_same_pairs_as_this_machine(
    cluster: JobCluster, raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = curate_captions(raw, tmp_path / "here", min_contrast=5.0)
    assert 0 < len(here) < 12
    with caplog.at_level("INFO"):
        there = curate_captions(raw, tmp_path / "there", min_contrast=5.0, engine="ray", ray="job", processes=2)
    assert there == here
    assert all((tmp_path / "there" / name).exists() for name in OUT[:3])
    assert "ray: " in caplog.text and f"kept {len(here)} of 12 pairs" in caplog.text
    [job] = cluster.created_objects
    assert job["spec"]["entrypoint"].startswith("vlmflow step curate --recipe /data/jobs/curate-")
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 2
    assert not cluster.objects and not cluster.pods and not list((cluster.shared / "jobs").iterdir())


def test_a_failed_rayjob_reports_the_steps_error_line(cluster: JobCluster, raw: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ServiceError, match=r"RayJob curate-\w+: failed: ray \(Failed\): error: .*none of 12 pairs is kept"
    ):
        curate_captions(raw, tmp_path / "none", min_side=64, engine="ray", ray="job")
    assert not cluster.objects


@pytest.mark.parametrize("job", [yaml.safe_load(TEMPLATE.read_text()), manifest("curate-0a", 3)], ids=["file", "step"])
def test_the_job_matches_the_schema(job: dict[str, Any]) -> None:
    if not SCHEMA.exists():
        pytest.skip("the schema of the cluster is not available")
    jsonschema.validate(job, json.loads(SCHEMA.read_text()))


def test_every_pod_has_limits_no_privileges_and_the_jobs_label() -> None:
    job = manifest("curate-0a", 3)
    ray = job["spec"]["rayClusterSpec"]
    templates = [job["spec"]["submitterPodTemplate"], ray["headGroupSpec"]["template"]]
    templates += [group["template"] for group in ray["workerGroupSpecs"]]
    for template in templates:
        assert template["metadata"]["labels"][LABEL] == "curate-0a"
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in template["spec"]["containers"]:
            assert container["image"].startswith("localhost/vlmflow-step:")
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert job["spec"]["shutdownAfterJobFinishes"] and job["spec"]["ttlSecondsAfterFinished"] > 0


def test_a_ray_address_needs_the_ray_engine() -> None:
    with pytest.raises(RecipeError, match="set engine to ray"):
        recipes.load(CurateConfig, {"curate": {"ray": "job"}}, "curate")
