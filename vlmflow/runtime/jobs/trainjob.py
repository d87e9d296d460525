"""Training on several nodes: the step creates a TrainJob of Kubeflow Trainer and waits for it.

Its pods run the image of the step; torchrun starts each node's processes, which form one group and call the training
function. Everything specific to the cluster is in the runtime `vlmflow-torch` (infra/trainer/runtime.yaml).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmflow.artifacts.hashing import cache_key, content_hash
from vlmflow.config.section import Section
from vlmflow.runtime.code_hash import code_hash
from vlmflow.runtime.container_image import image_name
from vlmflow.runtime.jobs.job import Job, JobKind, producer_environment
from vlmflow.runtime.jobs.shared_volume import ARGUMENTS, JobVolume
from vlmflow.training.config import TrainingConfig

GROUP = "trainer.kubeflow.org"
RUNTIME = "vlmflow-torch"


def run_on_nodes(
    step: str, function: Callable[..., None], training: TrainingConfig, *arguments: Any, out: Path
) -> None:
    """Call `function(*arguments, out)` in every process of `training.nodes` nodes, and wait.

    The job's name is a hash of its work, so that a step that was killed finds its job again, running or finished.

    Args:
        step: the step's name, for the job's name and for error messages.
        function: a function at module level with annotated parameters.
        training: nodes, processes and resources.
        arguments: JSON values, sections of a recipe, and paths of artifacts; a path outside the shared volume is
            copied to it.
        out: where the output is copied to.

    Raises:
        ServiceError: no cluster, no shared volume, or the job failed. VlmflowError: raised by `function`.
    """
    contents = [content_hash(part) if isinstance(part, Path) else part for part in arguments]
    digest = cache_key(function=function.__qualname__, contents=contents, code=code_hash(function.__module__))
    volume = JobVolume(f"{step.replace('_', '-')}-{digest[:10]}")

    def prepare() -> None:
        volume.reset()
        (volume.folder / ARGUMENTS).write_text(json.dumps([_to_json(part, volume) for part in arguments]))

    job = manifest(volume.folder.name, training, f"{function.__module__}:{function.__qualname__}")
    needed_by = f"{step}.training.nodes {training.nodes}"
    Job(TRAINJOB, job, training.nodes, needed_by=needed_by).run(prepare)
    volume.raise_error()
    volume.stage_out("out", out)
    volume.remove()


def _to_json(argument: Any, volume: JobVolume) -> Any:
    if isinstance(argument, Path):
        return str(volume.stage_in(argument))
    return argument.model_dump() if isinstance(argument, Section) else argument


def manifest(name: str, training: TrainingConfig, function: str) -> dict[str, Any]:
    """Return the TrainJob that calls `function` (module:name) with the arguments on the job's volume.

    The function is part of the manifest, not of the volume: write access to the volume must not decide what runs.
    """
    from kubeflow_trainer_api import models

    quantity = models.IoK8sApimachineryPkgApiResourceQuantity
    resources = {name: quantity(str(value)) for name, value in training.resources.items()}
    return models.TrainerV1alpha1TrainJob(
        apiVersion=f"{GROUP}/v1alpha1",
        kind=TRAINJOB.name,
        metadata=models.IoK8sApimachineryPkgApisMetaV1ObjectMeta(
            name=name, labels={"app.kubernetes.io/part-of": "vlmflow"}
        ),
        spec=models.TrainerV1alpha1TrainJobSpec(
            runtimeRef=models.TrainerV1alpha1RuntimeRef(apiGroup=GROUP, kind="TrainingRuntime", name=RUNTIME),
            trainer=models.TrainerV1alpha1Trainer(
                image=image_name("train"),
                numNodes=training.nodes,
                numProcPerNode=training.processes,
                command=["python", "-m", "torch.distributed.run"],
                args=["-m", "vlmflow.runtime.jobs.torchrun_entry", name, function],
                env=[
                    models.IoK8sApiCoreV1EnvVar(name=name, value=value)
                    for name, value in producer_environment(image_name("train")).items()
                ],
                resourcesPerNode=models.IoK8sApiCoreV1ResourceRequirements(requests=resources, limits=resources)
                if resources
                else None,
            ),
        ),
    ).to_dict()


def _result(status: dict[str, Any]) -> str | None:
    for condition in status.get("conditions", []):
        if condition["status"] == "True" and condition["type"] == "Complete":
            return ""
        if condition["status"] == "True" and condition["type"] == "Failed":
            return f"{condition['reason']}: {condition['message']}"
    return None


def _node_name(labels: dict[str, str]) -> str | None:
    return f"node-{labels.get('batch.kubernetes.io/job-completion-index', '?')}"


TRAINJOB = JobKind(
    name="TrainJob",
    result=_result,
    selector="jobset.sigs.k8s.io/jobset-name={name}",
    log_prefix=_node_name,
)
