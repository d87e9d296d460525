"""The images are what they are said to be, and the whole life runs in them as it does in processes."""

import json
from pathlib import Path

import pytest

from tests.conftest import vlmflow
from tests.containers.conftest import LIMITS, podman
from vlmflow.runtime.step import image, revision

pytestmark = pytest.mark.timeout(1500)


def inside(name: str, *command: str) -> str:
    """What a command prints in a container as a cluster would start it: restricted, and read-only but for /tmp."""
    restricted = ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/tmp"]
    return podman("run", "--rm", "--network", "host", *LIMITS, *restricted, name, *command).stdout


def test_an_image_says_what_it_is_and_holds_no_tools(built: str) -> None:
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


def test_the_predictor_is_the_image_serve(built: str) -> None:
    (facts,) = json.loads(podman("image", "inspect", image("serve")).stdout)
    assert facts["Config"]["Entrypoint"] == ["python", "-m", "vlmflow.serving.predictor"]
    (step,) = json.loads(podman("image", "inspect", built).stdout)
    assert facts["RootFS"]["Layers"][: len(step["RootFS"]["Layers"])] == step["RootFS"]["Layers"]  # nothing twice


def test_the_life_in_containers_makes_what_the_life_in_processes_makes(
    engine: str, built: str, finished_run: Path, tmp_path: Path
) -> None:
    done = vlmflow(
        tmp_path / "runs", "run", "recipes/mini.yaml", "--containers", DOCKER_HOST=engine, VLMFLOW_STEP_IMAGE=built
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "runs" / "latest"
    here, there = (
        {file.stem: json.loads(file.read_text()) for file in sorted((place / "steps").glob("*.json"))}
        for place in (finished_run, run)
    )
    assert set(here) == set(there)
    assert not any(record["cached"] for record in there.values())
    for name, record in there.items():
        found = {label: output["hash"] for label, output in record["outputs"].items()}
        expected = {label: output["hash"] for label, output in here[name]["outputs"].items()}
        changing = CHANGING.get(name.split("-")[0], ())
        assert {k: v for k, v in found.items() if k not in changing} == {
            k: v for k, v in expected.items() if k not in changing
        }, name
    verdicts = Path("curate", "ledger", "ledger.parquet")
    assert (finished_run / verdicts).read_bytes() == (run / verdicts).read_bytes()


# What names a run, a time or a place, and so is another file each time.
CHANGING: dict[str, tuple[str, ...]] = {
    "validate": ("report",),  # Great Expectations' pages name the time
    "curate": ("ledger",),  # its cost.json has seconds; the verdicts are compared by themselves
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


def test_without_an_engine_or_an_image_the_run_says_so(engine: str, tmp_path: Path) -> None:
    for environment, said in (
        ({"DOCKER_HOST": f"unix://{tmp_path}/none"}, "no container engine at"),
        ({"DOCKER_HOST": engine, "VLMFLOW_STEP_IMAGE": "localhost/none:1"}, "localhost/none:1: no such image here"),
    ):
        done = vlmflow(tmp_path / "runs", "run", "recipes/mini.yaml", "--containers", **environment)
        assert done.returncode == 2 and said in done.stderr, done.stderr
