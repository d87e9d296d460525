"""Training on several nodes: a TrainJob of Kubeflow Trainer, created by the step and waited for.

Its pods run the image of the step; torchrun starts each node's processes, which form one group and call the training
function. The runtime `vlmflow-torch` (infra/trainer/runtime.yaml) says all that is the cluster's own affair.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmflow.artifacts.hashing import cache_key, content_hash
from vlmflow.config.section import Section
from vlmflow.runtime.code_hash import code_hash
from vlmflow.runtime.container_image import image_name
from vlmflow.runtime.jobs.cluster import Cluster, Kind
from vlmflow.runtime.jobs.shared_volume import ARGUMENTS, Place
from vlmflow.training.config import TrainingConfig

RUNTIME = "vlmflow-torch"
PASSED = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "VLMFLOW_TRACKING")


def on_nodes(step: str, function: Callable[..., None], training: TrainingConfig, *arguments: Any, out: Path) -> None:
    """Call `function(*arguments, out)` in every process of `training.nodes` nodes, and wait.

    The job's name is a hash of what it works on: a step that was killed and is run again finds it, running or done.

    Args:
        function: importable by name, its parameters annotated.
        arguments: what JSON holds, sections of a recipe, and artifacts: of each `Path` the nodes see it, or a copy, on
            the shared volume.

    Raises:
        ServiceError: no cluster, no shared volume, or the job failed. VlmflowError: as `function`.
    """
    contents = [content_hash(part) if isinstance(part, Path) else part for part in arguments]
    digest = cache_key(function=function.__qualname__, contents=contents, code=code_hash(function.__module__))
    place = Place(f"{step.replace('_', '-')}-{digest[:10]}")

    def prepare() -> None:
        place.empty()
        (place.folder / ARGUMENTS).write_text(json.dumps([_plain(part, place) for part in arguments]))

    cluster = Cluster(f"{step}.training.nodes {training.nodes}")
    job = manifest(place.folder.name, training, f"{function.__module__}:{function.__qualname__}")
    cluster.run(TRAINJOB, job, training.nodes, prepare)
    place.raise_refusal()
    place.take("out", out)
    place.clear()


def _plain(argument: Any, place: Place) -> Any:
    if isinstance(argument, Path):
        return str(place.bring(argument))
    return argument.model_dump() if isinstance(argument, Section) else argument


def manifest(name: str, training: TrainingConfig, function: str) -> dict[str, Any]:
    """The TrainJob that calls `function`, module:name, with what lies in the job's place.

    The function stands here and not on the volume: who writes there gives data, and cannot choose what runs.
    """
    from kubeflow_trainer_api import models

    quantity = models.IoK8sApimachineryPkgApiResourceQuantity
    asked = {name: quantity(str(value)) for name, value in training.resources.items()}
    return models.TrainerV1alpha1TrainJob(
        apiVersion=f"{TRAINJOB.group}/{TRAINJOB.version}",
        kind=TRAINJOB.name,
        metadata=models.IoK8sApimachineryPkgApisMetaV1ObjectMeta(
            name=name, labels={"app.kubernetes.io/part-of": "vlmflow"}
        ),
        spec=models.TrainerV1alpha1TrainJobSpec(
            runtimeRef=models.TrainerV1alpha1RuntimeRef(apiGroup=TRAINJOB.group, kind="TrainingRuntime", name=RUNTIME),
            trainer=models.TrainerV1alpha1Trainer(
                image=image_name("train"),
                numNodes=training.nodes,
                numProcPerNode=training.processes,
                command=["python", "-m", "torch.distributed.run"],
                args=["-m", "vlmflow.runtime.jobs.torchrun_entry", name, function],
                env=[
                    models.IoK8sApiCoreV1EnvVar(name=variable, value=os.environ[variable])
                    for variable in PASSED
                    if variable in os.environ
                ],
                resourcesPerNode=models.IoK8sApiCoreV1ResourceRequirements(requests=asked, limits=asked)
                if asked
                else None,
            ),
        ),
    ).to_dict()


def _ended(status: dict[str, Any]) -> str | None:
    for condition in status.get("conditions", []):
        if condition["status"] == "True" and condition["type"] == "Complete":
            return ""
        if condition["status"] == "True" and condition["type"] == "Failed":
            return f"{condition['reason']}: {condition['message']}"
    return None


def _node(labels: dict[str, str]) -> str | None:
    return f"node-{labels.get('batch.kubernetes.io/job-completion-index', '?')}"


TRAINJOB = Kind(
    name="TrainJob",
    group="trainer.kubeflow.org",
    version="v1alpha1",
    plural="trainjobs",
    ended=_ended,
    selector="jobset.sigs.k8s.io/jobset-name={name}",
    speaker=_node,
)
