"""The section `deploy` of a recipe."""

import os
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["Standard", "Knative"]
Runtime = Literal["vlmflow", "vllm", "huggingface"]
Metric = Literal["", "concurrency", "rps", "cpu", "memory", "prometheus"]

NAMESPACE = "VLMFLOW_NAMESPACE"  # where jobs and endpoints are created


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """A taint of a node that the pods may run on all the same, as Kubernetes has it."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


@dataclass(frozen=True, kw_only=True)
class DeployConfig:
    """How the endpoint is run.

    target: `local` starts the predictor on this machine, tries it and stops it; `cluster` applies the manifests to the
        cluster of KUBECONFIG, or in a pod to its own, tries the endpoint, and brings back what was there before if
        it fails; `manifest` writes the manifests only. All three write them.
    prompt: what the endpoint is asked about a picture of the test split.
    timeout: seconds that it may take until it is ready; in a cluster that is also pulling the image and the model.

    runtime: `vlmflow` serves every family; `vllm`, and `huggingface` (KServe's own, of the cluster), serve what vLLM
        knows.
    image: container image; empty means our own, `serve`. `vllm` wants one named, of a release that reads what the
        transformers of this environment wrote.
    storage: URI of the checkpoint's folder that KServe fetches it from, `s3://…` or `pvc://models/vlm/3`; empty means
        where the registry keeps it. What MLflow's server calls `mlflow-artifacts:/` is looked for below
        MLFLOW_ARTIFACTS_DESTINATION, the server's own setting.
    service_account: the Secret that it names opens s3://; both are there already, in the namespace.
    namespace: empty means VLMFLOW_NAMESPACE, or `default`.

    mode: `Standard` makes a Deployment and a Service, `Knative` revisions that may sleep.
    cpu, memory, gpus: of one replica, requested and the limit.
    node_selector, tolerations: which nodes; with Knative they are features that its ConfigMap config-features enables.
    min_replicas: 0 lets it sleep, with Knative.
    scale_metric: what more replicas are started by. With Knative `concurrency`, `rps`, or `cpu` and `memory` by a HPA;
        in Standard mode `cpu` and `memory` by a HPA, or `prometheus` by KEDA. Empty is KServe's default.
    scale_target: of the metric in each replica: requests, requests a second, or percent of what was requested.
    scale_query, prometheus: for `prometheus`, the query and the server's address.

    canary: percent of the requests that a new version gets at first in a cluster; 0 replaces the old one. With Knative
        it is a revision; in Standard mode KServe, from 0.20 on, splits by the Gateway API alone, and without that a
        canary is refused.
    promote: give the canary all requests once it has answered; else it stays as it is.
    challengers: in a cluster, also bring a version there that the gate kept from becoming the champion; else the
        endpoint stays with what it has.
    url: address of the ingress or a port-forward to ask through, from outside of the cluster; the endpoint's own name
        goes into the header Host. Empty asks the endpoint's address in the cluster.
    """

    target: Literal["local", "cluster", "manifest"] = "local"
    prompt: str = "Describe the picture."
    timeout: float = 600.0

    runtime: Runtime = "vlmflow"
    image: str = ""
    storage: str = ""
    service_account: str = "default"
    namespace: str = ""

    mode: Mode = "Standard"
    cpu: str = "1"
    memory: str = "4Gi"
    gpus: int = 0
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    min_replicas: int = 1
    max_replicas: int = 1
    scale_metric: Metric = ""
    scale_target: int = 0
    scale_query: str = ""
    prometheus: str = ""

    canary: int = 0
    promote: bool = True
    deploy_challengers: bool = False
    url: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ValueError(
                f"replicas: expected 0 <= {self.min_replicas} <= {self.max_replicas}, and at least 1 at most"
            )
        if self.gpus < 0:
            raise ValueError(f"gpus must not be negative, got {self.gpus}")
        if self.timeout <= 0:
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}")
        if not self.prompt.strip():
            raise ValueError("prompt must not be empty")
        if self.runtime == "vllm" and not self.image:
            raise ValueError("runtime vllm: image must be given, such as docker.io/vllm/vllm-openai@sha256:…")
        if self.runtime == "huggingface" and self.image:
            raise ValueError("runtime huggingface: it runs in the image of the cluster's own runtime; leave image out")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: expected http://… or https://…, got {self.url!r}")
        self._check_scaling()
        self._check_canary()

    def _check_scaling(self) -> None:
        known = ("concurrency", "rps", "cpu", "memory") if self.mode == "Knative" else ("cpu", "memory", "prometheus")
        if self.scale_metric and self.scale_metric not in known:
            raise ValueError(
                f"scale_metric: {self.scale_metric!r} is no metric of mode {self.mode}; it has {', '.join(known)}"
            )
        if self.scale_target < 0 or bool(self.scale_target) != bool(self.scale_metric):
            raise ValueError(
                f"scale_target: expected a number above 0 beside scale_metric, got {self.scale_target} "
                f"beside {self.scale_metric!r}"
            )
        if self.scale_metric == "cpu" and self.scale_target > 100:
            raise ValueError(f"scale_target: percent of the cpu, at most 100, got {self.scale_target}")
        if (self.scale_metric == "prometheus") != bool(self.scale_query and self.prometheus):
            raise ValueError("scale_query and prometheus: both are given with scale_metric: prometheus, and only then")
        if self.mode == "Standard" and self.min_replicas == 0:
            raise ValueError("min_replicas: only with mode: Knative does an endpoint sleep; expected 1 or more")

    def _check_canary(self) -> None:
        if not 0 <= self.canary < 100:
            raise ValueError(f"canary: expected percent from 0 to 99, got {self.canary}")
        if self.canary and self.mode == "Standard" and self.url:
            raise ValueError("canary: in Standard mode its own address is known in the cluster alone; leave url out")

    def namespace_or_default(self) -> str:
        """The namespace."""
        return self.namespace or os.environ.get(NAMESPACE) or "default"
