"""The images have the documented properties, and the end-to-end pipeline gives the same results in containers."""

import json
from pathlib import Path

import pytest

from tests.conftest import vlmflow
from tests.containers.conftest import LIMITS, podman
from vlmflow.runtime.container_image import image_name, revision

pytestmark = pytest.mark.timeout(1500)


def inside(name: str, *command: str) -> str:
    """Return the output of a command in a container as on a cluster: restricted, and read-only except for /tmp."""
    restricted = ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/tmp"]
    return podman("run", "--rm", "--network", "host", *LIMITS, *restricted, name, *command).stdout


def test_the_step_image_has_its_labels_and_sbom_and_no_tools(built: str) -> None:
    (facts,) = json.loads(podman("image", "inspect", built).stdout)
    assert facts["Labels"]["org.opencontainers.image.revision"] == revision() == built.split(":")[1]
    assert facts["Config"]["User"] == "1000"
    assert inside(built, "id", "-u").strip() == "1000"
    tools = "for tool in gcc cc make pip pip3 git curl wget; do command -v $tool; done; python -m pip --version; true"
    assert inside(built, "sh", "-c", tools).strip() == ""
    listed = json.loads(inside(built, "cat", "/usr/share/vlmflow/sbom.cdx.json"))
    names = {part["name"]: part["version"] for part in listed["components"]}
    lock = dict(line.split("==") for line in Path("requirements.lock").read_text().splitlines() if "==" in line)
    missing = {
        name for name in lock if name.lower().replace("_", "-") not in {n.lower().replace("_", "-") for n in names}
    }
    assert listed["bomFormat"] == "CycloneDX" and not missing
    assert names["transformers"] == lock["transformers"]


def test_the_serve_image_starts_the_predictor(built: str) -> None:
    (facts,) = json.loads(podman("image", "inspect", image_name("serve")).stdout)
    assert facts["Config"]["Entrypoint"] == ["python", "-m", "vlmflow.serving.server"]
    (step,) = json.loads(podman("image", "inspect", built).stdout)
    assert facts["RootFS"]["Layers"][: len(step["RootFS"]["Layers"])] == step["RootFS"]["Layers"]  # layers are shared


def test_a_run_in_containers_gives_the_same_outputs_as_in_processes(
    engine: str, built: str, finished_run: Path, tmp_path: Path
) -> None:
    done = vlmflow(
        tmp_path / "runs", "run", "recipes/mini.yaml", "--containers", DOCKER_HOST=engine, VLMFLOW_STEP_IMAGE=built
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "runs" / "latest"
    process_steps, container_steps = (
        {file.stem: json.loads(file.read_text()) for file in sorted((folder / "steps").glob("*.json"))}
        for folder in (finished_run, run)
    )
    assert set(process_steps) == set(container_steps)
    assert not any(record["cached"] for record in container_steps.values())
    for name, record in container_steps.items():
        actual = {label: output["hash"] for label, output in record["outputs"].items()}
        expected = {label: output["hash"] for label, output in process_steps[name]["outputs"].items()}
        changing = CHANGING.get(name.split("-")[0], ())
        assert {k: v for k, v in actual.items() if k not in changing} == {
            k: v for k, v in expected.items() if k not in changing
        }, name
    verdicts = Path("curate", "ledger", "ledger.parquet")
    assert (finished_run / verdicts).read_bytes() == (run / verdicts).read_bytes()


# Outputs that contain a run ID, a time or a path, and so differ in each run.
CHANGING: dict[str, tuple[str, ...]] = {
    "validate": ("report",),  # Great Expectations' pages contain the time
    "curate": ("ledger",),  # its cost.json contains seconds; the verdicts are compared separately
    "register": ("version",),
    "deploy": ("manifest", "transcript"),
    "report": ("report",),
}


def test_a_step_that_fails_in_its_container_fails_the_run(engine: str, built: str, tmp_path: Path) -> None:
    done = vlmflow(
        tmp_path / "runs", "run", "recipes/mini.yaml", "--containers", "--set", "ingest.source=folder",
        "--set", "ingest.path=/nowhere/at/all", DOCKER_HOST=engine, VLMFLOW_STEP_IMAGE=built,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert "error: ingest: " in done.stderr and "/nowhere/at/all" in done.stderr
    assert not (tmp_path / "runs" / "latest" / "ingest" / "raw").exists()


def test_a_missing_engine_or_image_is_named(engine: str, tmp_path: Path) -> None:
    for environment, message in (
        ({"DOCKER_HOST": f"unix://{tmp_path}/none"}, "no container engine answers at"),
        ({"DOCKER_HOST": engine, "VLMFLOW_STEP_IMAGE": "localhost/none:1"}, "localhost/none:1: image not found"),
    ):
        done = vlmflow(tmp_path / "runs", "run", "recipes/mini.yaml", "--containers", process=True, **environment)
        assert done.returncode == 2 and message in done.stderr, done.stderr
