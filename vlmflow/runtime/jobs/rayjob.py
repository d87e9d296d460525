"""A step on its own Ray cluster: the step creates a RayJob of KubeRay and waits for it.

infra/ray/rayjob.yaml is the template of the cluster. Its head runs `vlmflow step`, its workers process the parts.
"""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from vlmflow.artifacts.hashing import cache_key, content_hash
from vlmflow.runtime.code_hash import ROOT, code_hash
from vlmflow.runtime.container_image import image_name
from vlmflow.runtime.jobs.job import Job, JobKind, producer_environment
from vlmflow.runtime.jobs.shared_volume import VOLUME, JobVolume

TEMPLATE = ROOT / "infra" / "ray" / "rayjob.yaml"
LABEL = "vlmflow.dev/job"


def run_on_ray(
    step: str, section: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], processes: int
) -> None:
    """Run `step` with `section` of a recipe as a RayJob with a worker for each of `processes`, and wait.

    Inputs are copied to the shared volume unless they are on it already; outputs are copied from it.

    Raises:
        ServiceError: no cluster, no shared volume, or the job failed.
    """
    contents = {name: content_hash(path) for name, path in inputs.items()}
    digest = cache_key(section=section, contents=contents, code=code_hash(f"components.{step}.component"))
    volume = JobVolume(f"{step}-{digest[:10]}")
    staged: dict[str, Path] = {}

    def prepare() -> None:
        volume.reset()
        (volume.folder / "recipe.yaml").write_text(yaml.safe_dump({step: json.loads(json.dumps(section))}))
        staged.update({name: volume.stage_in(path) for name, path in inputs.items()})
        job["spec"]["entrypoint"] = job_command(step, mount_path(job), volume, staged, outputs)

    job = manifest(volume.folder.name, processes)
    Job(RAYJOB, job, 1 + processes, needed_by=f"{step}.ray: job").run(prepare)
    for name, path in outputs.items():
        volume.stage_out(f"out/{name}", path)
    volume.remove()


def job_command(step: str, mount: Path, volume: JobVolume, inputs: dict[str, Path], outputs: dict[str, Path]) -> str:
    """Return the job's command, with the paths in its pods.

    Args:
        step: the step's name.
        mount: mount path of the volume in the pods.
        volume: the job's folder.
        inputs: their paths relative to the volume.
        outputs: the outputs by name.
    """
    folder = mount / volume.folder.relative_to(volume.volume)
    command = ["vlmflow", "step", step, "--recipe", str(folder / "recipe.yaml")]
    for name, path in inputs.items():
        command += ["--in", f"{name}={mount / path}"]
    for name in outputs:
        command += ["--out", f"{name}={folder / 'out' / name}"]
    return shlex.join(command)


def manifest(name: str, workers: int) -> dict[str, Any]:
    """Return the RayJob from our template, without its entrypoint."""
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
            variables = producer_environment(container["image"])
            container["env"] = [*container.get("env", []), *({"name": n, "value": v} for n, v in variables.items())]
    return job


def mount_path(job: dict[str, Any]) -> Path:
    """Return the mount path of the shared volume in the pods of a RayJob."""
    [container] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    return Path(next(variable["value"] for variable in container["env"] if variable["name"] == VOLUME))


def _result(status: dict[str, Any]) -> str | None:
    if status.get("jobDeploymentStatus") not in ("Complete", "Failed"):
        return None
    if status.get("jobStatus") == "SUCCEEDED":
        return ""
    return f"{status.get('reason') or status.get('jobStatus')}: {status.get('message', '')}"


RAYJOB = JobKind(
    name="RayJob",
    result=_result,
    selector=LABEL + "={name}",
    # The submitter's log contains the lines of all pods.
    log_prefix=lambda labels: "ray" if "batch.kubernetes.io/job-name" in labels else None,
)
