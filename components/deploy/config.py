"""The section `deploy` of a recipe."""

import os
from typing import Literal

from pydantic import Field, model_validator

from vlmflow.config.section import Section
from vlmflow.config.toleration import Toleration

Mode = Literal["Standard", "Knative"]
Runtime = Literal["vlmflow", "vllm", "huggingface"]
Metric = Literal["", "concurrency", "rps", "cpu", "memory", "prometheus"]

METRICS = {"Knative": ("concurrency", "rps", "cpu", "memory"), "Standard": ("cpu", "memory", "prometheus")}


class DeployConfig(Section):
    """How a model version is served, and how its endpoint is tested."""

    target: Literal["local", "cluster", "manifest"] = Field(
        default="local",
        description="`local` starts the predictor on this machine, tests it and stops it. `cluster` applies the "
        "manifests to the cluster of KUBECONFIG (in a pod: its own), tests the endpoint, and restores the previous one "
        "if the test fails. `manifest` only writes the manifests, as the others do too.",
    )
    prompt: str = Field(
        default="Describe the picture.", description="Prompt of the test, about an image of the test split."
    )
    timeout: float = Field(
        default=600.0,
        gt=0,
        description="Seconds until the endpoint must be ready; in a cluster including the pull of image and model.",
    )

    runtime: Runtime = Field(
        default="vlmflow",
        description="Serving runtime: `vlmflow` serves every family; `vllm`, and `huggingface` (the cluster's own from "
        "KServe), serve the families that vLLM supports.",
    )
    image: str = Field(
        default="",
        description="Container image; empty uses our `serve` image. Required with `vllm`: an image of a release that "
        "reads checkpoints of this environment's transformers. Must be empty with `huggingface`.",
    )
    storage: str = Field(
        default="",
        description="URI of the checkpoint folder for KServe: `s3://…`, `gs://…`, `hf://…`, `https://…` or "
        "`pvc://models/vlm/3`; empty uses the registry's. `mlflow-artifacts:/` is resolved with "
        "MLFLOW_ARTIFACTS_DESTINATION, the MLflow server's setting.",
    )
    service_account: str = Field(
        default="",
        description="Existing service account of the namespace; its Secret gives access to `s3://` storage. Empty uses "
        "`serving` (infra/namespace) for `s3://` storage, otherwise `default`.",
    )
    namespace: str = Field(default="", description="Kubernetes namespace; empty uses VLMFLOW_NAMESPACE, or `default`.")

    mode: Mode = Field(
        default="Standard",
        description="KServe mode: `Standard` makes a Deployment and a Service, `Knative` makes revisions.",
    )
    cpu: str = Field(default="1", description="CPU of a replica, request and limit, as a Kubernetes quantity.")
    memory: str = Field(default="4Gi", description="Memory of a replica, request and limit, as a Kubernetes quantity.")
    gpus: int = Field(default=0, ge=0, description="GPUs of a replica.")
    node_selector: dict[str, str] = Field(
        default_factory=dict,
        description="Labels of the nodes; Knative needs this feature enabled in its ConfigMap config-features.",
    )
    tolerations: tuple[Toleration, ...] = Field(
        default=(),
        description="Tolerated taints of nodes; Knative needs this feature enabled in its ConfigMap config-features.",
    )
    min_replicas: int = Field(default=1, ge=0, description="Fewest replicas; 0 scales to zero, with Knative only.")
    max_replicas: int = Field(default=1, ge=1, description="Most replicas.")
    scale_metric: Metric = Field(
        default="",
        description="Metric that adds replicas. Knative: `concurrency`, `rps`, or `cpu` and `memory` (HPA). Standard: "
        "`cpu` and `memory` (HPA), or `prometheus` (KEDA). Empty uses KServe's default.",
    )
    scale_target: int = Field(
        default=0,
        ge=0,
        description="Target of the metric in each replica: requests, requests a second, or percent of the requested "
        "resource. Required with `scale_metric`.",
    )
    scale_query: str = Field(default="", description="PromQL query, with `scale_metric: prometheus` only.")
    prometheus: str = Field(
        default="", description="Address of the Prometheus server, with `scale_metric: prometheus` only."
    )

    canary: int = Field(
        default=0,
        ge=0,
        lt=100,
        description="Percent of requests for a new version at first, in a cluster; 0 replaces the previous version at "
        "once. Standard mode needs KServe 0.20 or later with the Gateway API; otherwise a canary is refused.",
    )
    promote: bool = Field(
        default=True, description="Send all requests to the canary after its test; false leaves it at `canary` percent."
    )
    deploy_challengers: bool = Field(
        default=False,
        description="In a cluster, also deploy a version that the gate did not make champion; false keeps the current "
        "endpoint.",
    )
    url: str = Field(
        default="",
        description="Address of the ingress or of a port-forward, to test the endpoint from outside the cluster; the "
        "endpoint's host name is sent in the header Host. Empty uses the endpoint's address in the cluster.",
    )

    @model_validator(mode="after")
    def _check(self) -> "DeployConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} must not exceed max_replicas {self.max_replicas}")
        if not self.prompt.strip():
            raise ValueError("prompt must not be empty")
        if self.runtime == "vllm" and not self.image:
            raise ValueError("runtime vllm needs image, such as docker.io/vllm/vllm-openai@sha256:…")
        if self.runtime == "huggingface" and self.image:
            raise ValueError("runtime huggingface uses the image of the cluster's own runtime; remove image")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: expected http://… or https://…, got {self.url!r}")
        if self.canary and self.mode == "Standard" and self.url:
            raise ValueError("canary in Standard mode can be tested only from inside the cluster; remove url")
        self._check_scaling()
        return self

    def _check_scaling(self) -> None:
        known = METRICS[self.mode]
        if self.scale_metric and self.scale_metric not in known:
            raise ValueError(
                f"scale_metric: {self.scale_metric!r} is not a metric of mode {self.mode}; use {', '.join(known)}"
            )
        if bool(self.scale_target) != bool(self.scale_metric):
            raise ValueError(
                f"scale_target and scale_metric must be set together, got {self.scale_target} and {self.scale_metric!r}"
            )
        if self.scale_metric == "cpu" and self.scale_target > 100:
            raise ValueError(f"scale_target: percent of the cpu, at most 100, got {self.scale_target}")
        if (self.scale_metric == "prometheus") != bool(self.scale_query and self.prometheus):
            raise ValueError("scale_query and prometheus must be set with scale_metric: prometheus, and only then")
        if self.mode == "Standard" and self.min_replicas == 0:
            raise ValueError("min_replicas must be at least 1 in mode Standard; only Knative scales to zero")

    def namespace_or_default(self) -> str:
        """The namespace: the section's, VLMFLOW_NAMESPACE, or `default`."""
        return self.namespace or os.environ.get("VLMFLOW_NAMESPACE") or "default"
