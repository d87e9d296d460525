"""A step on a Ray cluster of its own: a RayJob of KubeRay, created by the step and waited for.

infra/ray/rayjob.yaml says what the cluster looks like; its head runs `vlmflow step`, its workers take the parts.
"""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from vlmflow.artifacts.hashing import cache_key, content_hash
from vlmflow.runtime.code_hash import ROOT, code_hash
from vlmflow.runtime.container_image import image_name
from vlmflow.runtime.jobs.cluster import Cluster, Kind
from vlmflow.runtime.jobs.shared_volume import VOLUME, Place

TEMPLATE = ROOT / "infra" / "ray" / "rayjob.yaml"
LABEL = "vlmflow.dev/job"


def on_ray(
    step: str, section: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], processes: int
) -> None:
    """Run `step` with `section` of a recipe as a RayJob with a worker for each of `processes`, and wait.

    What goes in is copied to the shared volume where it does not lie there, and what comes out is fetched from it.

    Raises:
        ServiceError: no cluster, no shared volume, or the job failed.
    """
    contents = {name: content_hash(path) for name, path in inputs.items()}
    digest = cache_key(section=section, contents=contents, code=code_hash(f"components.{step}.component"))
    place = Place(f"{step}-{digest[:10]}")
    brought: dict[str, Path] = {}

    def prepare() -> None:
        place.empty()
        (place.folder / "recipe.yaml").write_text(yaml.safe_dump({step: json.loads(json.dumps(section))}))
        brought.update({name: place.bring(path) for name, path in inputs.items()})
        job["spec"]["entrypoint"] = entrypoint(step, mounted(job), place, brought, outputs)

    job = manifest(place.folder.name, processes)
    Cluster(f"{step}.ray: job").run(RAYJOB, job, 1 + processes, prepare)
    for name, path in outputs.items():
        place.take(f"out/{name}", path)
    place.clear()


def entrypoint(step: str, volume: Path, place: Place, inputs: dict[str, Path], outputs: dict[str, Path]) -> str:
    """The command of the job, by the paths that its pods see.

    Args:
        volume: where they mount it. inputs: by their paths on it.
    """
    folder = volume / place.folder.relative_to(place.volume)
    command = ["vlmflow", "step", step, "--recipe", str(folder / "recipe.yaml")]
    for name, path in inputs.items():
        command += ["--in", f"{name}={volume / path}"]
    for name in outputs:
        command += ["--out", f"{name}={folder / 'out' / name}"]
    return shlex.join(command)


def manifest(name: str, workers: int) -> dict[str, Any]:
    """The RayJob by our template, without its entrypoint."""
    job = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    group = cluster["workerGroupSpecs"][0]
    job["metadata"]["name"] = name
    group["replicas"], group["maxReplicas"] = workers, max(workers, group["maxReplicas"])
    templates = (spec["submitterPodTemplate"], cluster["headGroupSpec"]["template"], group["template"])
    for template in templates:
        template["metadata"]["labels"] = {**template["metadata"]["labels"], LABEL: name}
        for container in template["spec"]["containers"]:
            container["image"] = image_name("step")
    return job


def mounted(job: dict[str, Any]) -> Path:
    """Where the pods of a RayJob mount the shared volume."""
    [container] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    return Path(next(variable["value"] for variable in container["env"] if variable["name"] == VOLUME))


def _ended(status: dict[str, Any]) -> str | None:
    if status.get("jobDeploymentStatus") not in ("Complete", "Failed"):
        return None
    if status.get("jobStatus") == "SUCCEEDED":
        return ""
    return f"{status.get('reason') or status.get('jobStatus')}: {status.get('message', '')}"


RAYJOB = Kind(
    name="RayJob",
    group="ray.io",
    version="v1",
    plural="rayjobs",
    ended=_ended,
    selector=LABEL + "={name}",
    speaker=lambda labels: "ray" if "batch.kubernetes.io/job-name" in labels else None,  # the submitter tells all lines
)
