"""Where each step runs on a cluster: a strict YAML, read into dataclasses and put on the tasks of a pipeline."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kfp import kubernetes
from kfp.dsl import PipelineTask

from pipelines.step_cli import names
from vlmflow.config import recipes as recipes
from vlmflow.errors import RecipeError
from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.step import image

SHIPPED = ROOT / "infra" / "kubeflow" / "placement.yaml"
CPU = re.compile(r"\d+(\.\d+)?|\d+m")  # as KFP takes them
BYTES = re.compile(r"\d+([EPTGMK]i?)?")
DURATION = re.compile(r"\d+s")

Names = dict[str, dict[str, str]]  # a Secret or ConfigMap → its key → an environment variable


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """A taint of nodes that a step's pod may run on, as in a pod's spec."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


@dataclass(frozen=True, kw_only=True)
class StepResources:
    """What a step's pod asks for.

    image: `step` or `train`, images of ours (vlmflow/runtime/step.py), or an image's whole name.
    cpu, memory: what the pod is given, no less and no more.
    shared_memory: of /dev/shm, for the workers of a training; "" leaves it at 64Mi.
    gpus: how many of the resource `gpu`.
    node: labels that the node must have.
    secrets, config: a Secret or a ConfigMap → its key → the environment variable; what is absent is left unset.
    environment: further environment variables.
    volumes: a PersistentVolumeClaim → where it is mounted.
    retries, backoff: how often a step that failed is tried again, and the wait before the first time; then twice that.
    timeout_minutes: of one try; 0 is without end.
    cache: whether KFP may take what the step made before from the same inputs, parameters and image.
    """

    image: str = "step"
    cpu: str | int | float = 1
    memory: str = "2Gi"
    shared_memory: str = ""
    gpus: int = 0
    gpu: str = "nvidia.com/gpu"
    node: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    secrets: Names = field(default_factory=dict)
    config: Names = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    volumes: dict[str, str] = field(default_factory=dict)
    retries: int = 0
    backoff: str = "30s"
    timeout_minutes: int = 0
    cache: bool = True

    def __post_init__(self) -> None:
        if not CPU.fullmatch(str(self.cpu)):
            raise ValueError(f"cpu {self.cpu!r} is no quantity; write 2, 0.5 or 500m")
        for name in ("memory", "shared_memory"):
            given = getattr(self, name)
            if not BYTES.fullmatch(given) and (given or name == "memory"):
                raise ValueError(f"{name} {given!r} is no quantity; write 512Mi, 4Gi or 4G")
        if not DURATION.fullmatch(self.backoff):
            raise ValueError(f"backoff {self.backoff!r} is no duration; write seconds, such as 30s")
        if min(self.gpus, self.retries, self.timeout_minutes) < 0:
            raise ValueError("gpus, retries and timeout_minutes must not be negative")

    def apply(self, task: PipelineTask) -> None:
        """Ask for all of it on `task`."""
        task.set_container_image(image(self.image) if self.image in ("step", "train") else self.image)
        task.set_cpu_request(str(self.cpu)).set_cpu_limit(str(self.cpu))
        task.set_memory_request(self.memory).set_memory_limit(self.memory)
        if self.gpus:
            task.set_accelerator_type(self.gpu).set_accelerator_limit(self.gpus)
        if not self.cache:  # else as the pipeline has it
            task.set_caching_options(False)
        if self.retries:
            task.set_retry(self.retries, backoff_duration=self.backoff, backoff_factor=2.0)
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
        # A step names images too: of its record, of the jobs that it starts, of the endpoint.
        images = {f"VLMFLOW_{target.upper()}_IMAGE": image(target) for target in ("step", "train", "serve")}
        for name, value in {**images, **self.environment}.items():
            task.set_env_variable(name, value)
        for claim, path in self.volumes.items():
            kubernetes.mount_pvc(task, claim, path)
        for secret, keys in self.secrets.items():
            kubernetes.use_secret_as_env(task, secret, keys, optional=True)
        for config_map, keys in self.config.items():
            kubernetes.use_config_map_as_env(task, config_map, keys, optional=True)


@dataclass(frozen=True)
class Placement:
    """The place of every step."""

    places: dict[str, StepResources]

    def put(self, tasks: Iterable[PipelineTask]) -> None:
        """Give each task the place of its step."""
        for task in tasks:
            self.places[task.component_spec.name].apply(task)


def load(file: str | Path = SHIPPED) -> Placement:
    """Read a placement: `defaults`, and under `steps` what differs. A step's mappings add to those of the defaults.

    Raises:
        RecipeError: an unknown step or key, a wrong type or an impossible quantity, by name.
    """
    try:
        sections = recipes.parse(Path(file).read_text(encoding="utf-8") + "\n")
    except (OSError, UnicodeDecodeError, RecipeError) as error:
        raise RecipeError(f"{file}: no placement: {error}") from None
    for name in sections:
        if name not in ("defaults", "steps"):
            raise RecipeError(f"{file}: {name}: a placement has only `defaults` and `steps`")
    defaults, own = sections.get("defaults") or {}, sections.get("steps") or {}
    for name in own:
        if name not in names():
            near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0)[0]
            raise RecipeError(f"{file}: steps.{name}: no such step; the nearest is {near!r}, all: {', '.join(names())}")
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
