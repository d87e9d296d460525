"""The resources of each step on a cluster: read from a strict YAML file and applied to the tasks of a pipeline."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask
from pydantic import Field, model_validator

from pipelines.step_cli import names
from vlmflow.config import recipes as recipes
from vlmflow.config.nearest import nearest
from vlmflow.config.section import Section
from vlmflow.config.toleration import Toleration
from vlmflow.errors import RecipeError
from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.container_image import image_name
from vlmflow.runtime.pod_step import KFP_RUN

DEFAULT_FILE = ROOT / "infra" / "kubeflow" / "placement.yaml"
CPU = re.compile(r"\d+(\.\d+)?|\d+m")  # KFP's format
BYTES = re.compile(r"\d+([EPTGMK]i?)?")
DURATION = re.compile(r"\d+s")
START_SECONDS = 3600  # for a node and an image, in each attempt
UNLIMITED_SECONDS = 10 * 365 * 24 * 3600

EnvMapping = dict[str, dict[str, str]]  # a Secret or ConfigMap → its key → an environment variable


class StepResources(Section):
    """The pod of a step: its image, resources, nodes, environment and retries."""

    image: str = Field(
        default="step", description="`step` or `train`, our own images (vlmflow/runtime/step.py), or a full image name."
    )
    cpu: str | int | float = Field(default=1, description="CPU, request and limit.")
    memory: str = Field(default="2Gi", description="Memory, request and limit.")
    shared_memory: str = Field(
        default="",
        description="Size of /dev/shm, for the worker processes of a training; empty keeps Kubernetes' 64Mi.",
    )
    gpus: int = Field(default=0, ge=0, description="Amount of the resource `gpu`.")
    gpu: str = Field(default="nvidia.com/gpu", description="Resource name of the GPUs.")
    node: dict[str, str] = Field(default_factory=dict, description="Labels that the node must have.")
    tolerations: tuple[Toleration, ...] = Field(default=(), description="Tolerated taints of nodes.")
    secrets: EnvMapping = Field(
        default_factory=dict,
        description="Secret → its key → environment variable; a missing Secret or key leaves the variable unset.",
    )
    config: EnvMapping = Field(
        default_factory=dict,
        description="ConfigMap → its key → environment variable; a missing ConfigMap or key leaves the variable unset.",
    )
    environment: dict[str, str] = Field(default_factory=dict, description="Further environment variables.")
    volumes: dict[str, str] = Field(default_factory=dict, description="PersistentVolumeClaim → mount path.")
    retries: int = Field(
        default=0,
        ge=0,
        description="Number of retries of a step whose pod failed or was evicted; a pod that vanished with its node is "
        "not retried, because KFP leaves Argo's retry policy at OnFailure.",
    )
    backoff: str = Field(default="30s", description="Wait before the first retry; doubled before each further one.")
    timeout_minutes: int = Field(default=0, ge=0, description="Time limit of one attempt, in minutes; 0 is unlimited.")
    cache: bool = Field(
        default=True, description="Whether KFP may reuse outputs of the same inputs, parameters and image."
    )

    @model_validator(mode="after")
    def _check_quantities(self) -> "StepResources":
        if not CPU.fullmatch(str(self.cpu)):
            raise ValueError(f"cpu {self.cpu!r} is not a quantity; write 2, 0.5 or 500m")
        for name in ("memory", "shared_memory"):
            given = getattr(self, name)
            if not BYTES.fullmatch(given) and (given or name == "memory"):
                raise ValueError(f"{name} {given!r} is not a quantity; write 512Mi, 4Gi or 4G")
        if not DURATION.fullmatch(self.backoff):
            raise ValueError(f"backoff {self.backoff!r} is not a duration; write seconds, such as 30s")
        return self

    @property
    def retry_seconds(self) -> int:
        """The time for all attempts together.

        Argo measures it from the start of the first attempt, stops to retry after it, and kills a running attempt at
        its end. KFP's default is one hour.
        """
        if not self.timeout_minutes:
            return UNLIMITED_SECONDS
        waits = int(self.backoff.removesuffix("s")) * (2**self.retries - 1)
        return (self.retries + 1) * (60 * self.timeout_minutes + START_SECONDS) + waits

    def apply(self, task: PipelineTask) -> None:
        """Set all of this on `task`."""
        image = image_name(self.image) if self.image in ("step", "train") else self.image
        task.set_container_image(image)
        task.set_cpu_request(str(self.cpu)).set_cpu_limit(str(self.cpu))
        task.set_memory_request(self.memory).set_memory_limit(self.memory)
        if self.gpus:
            task.set_accelerator_type(self.gpu).set_accelerator_limit(self.gpus)
        if not self.cache:  # otherwise the pipeline's setting applies
            task.set_caching_options(False)
        if self.retries:
            task.set_retry(
                self.retries, self.backoff, backoff_factor=2.0, backoff_max_duration=f"{self.retry_seconds}s"
            )
        if self.timeout_minutes:
            kubernetes.set_timeout(task, 60 * self.timeout_minutes)
        if self.shared_memory:
            kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", "Memory", self.shared_memory)
        for label, value in self.node.items():
            kubernetes.add_node_selector(task, label, value)
        for taint in self.tolerations:
            kubernetes.add_toleration(
                task, taint.key or None, taint.operator, taint.value or None, taint.effect or None
            )
        # A step also needs image names: for its record, for the jobs that it starts and for the endpoint.
        images = {f"VLMFLOW_{target.upper()}_IMAGE": image_name(target) for target in ("step", "train", "serve")}
        for name, value in {"VLMFLOW_IMAGE": image, **images, **self.environment}.items():
            task.set_env_variable(name, value)
        kubernetes.use_field_path_as_env(task, KFP_RUN, "metadata.labels['pipeline/runid']")
        for claim, path in self.volumes.items():
            kubernetes.mount_pvc(task, claim, path)
        for secret, keys in self.secrets.items():
            kubernetes.use_secret_as_env(task, secret, keys, optional=True)
        for config_map, keys in self.config.items():
            kubernetes.use_config_map_as_env(task, config_map, keys, optional=True)


@dataclass(frozen=True)
class Placement:
    """The resources of every step, by its name."""

    resources: dict[str, StepResources]

    def apply(self, tasks: Iterable[PipelineTask]) -> None:
        """Set the resources of each task."""
        for task in tasks:
            self.resources[task.component_spec.name.replace("-", "_")].apply(task)  # KFP writes dashes


def load(file: str | Path | None = None) -> Placement:
    """Read a placement file (default: infra/kubeflow/placement.yaml): `defaults`, and the changes of each step.

    Mappings of a step are merged with those of the defaults; other values replace them.

    Raises:
        RecipeError: an unknown step or key, a wrong type or an impossible quantity; the message names it.
    """
    file = file or DEFAULT_FILE
    try:
        sections = recipes.parse(Path(file).read_text(encoding="utf-8") + "\n")
    except (OSError, UnicodeDecodeError, RecipeError) as error:
        raise RecipeError(f"{file}: cannot be read as a placement: {error}") from None
    for name in sections:
        if name not in ("defaults", "steps"):
            raise RecipeError(f"{file}: {name}: unknown; a placement has only `defaults` and `steps`")
    defaults, own = sections.get("defaults") or {}, sections.get("steps") or {}
    for name in own:
        if name not in names():
            raise RecipeError(
                f"{file}: steps.{name}: no such step; {nearest(name, names())}; all steps: {', '.join(names())}"
            )
    try:
        recipes.load(StepResources, {"defaults": defaults}, "defaults")
        merged = {f"steps.{name}": _merge(defaults, own.get(name)) for name in names()}
        return Placement({name: recipes.load(StepResources, merged, f"steps.{name}") for name in names()})
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from None


def _merge(defaults: dict[str, Any], own: Any) -> Any:
    if not isinstance(own, dict):
        return defaults if own is None else own
    both = {key: {**defaults[key], **own[key]} for key in own if isinstance(own[key], dict) and key in defaults}
    return {**defaults, **own, **both}
