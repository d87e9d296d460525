"""The KServe manifests of a model version: an InferenceService and its ServingRuntime."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from components.deploy import runtimes
from components.deploy.config import DeployConfig
from vlmflow.errors import ServiceError

SERVICES = ("mlflow", "postgres", "s3")  # of infra/mlflow and infra/overlays
DIGEST = "vlmflow.dev/deployment"  # label of the pods; it distinguishes the pods of two deployments


def inference_service(
    version: dict[str, Any], storage: str, image: str, config: DeployConfig, data_revision: str = ""
) -> dict[str, Any]:
    """Build the InferenceService from the SDK's objects.

    Args:
        version: `version.json` of the registered version.
        storage: URI of the checkpoint's folder, for KServe's storage initializer.
        image: the container image.
        data_revision: commit of the data, if the data is versioned.
    """
    from kserve import V1beta1InferenceService, V1beta1InferenceServiceSpec
    from kubernetes import client

    name = dns_name(version["name"])
    predictor = _predictor(storage, image, config)
    labels = {
        # Not the model's name: KServe copies the labels to the pods, and a Service may select its own by this label.
        "app.kubernetes.io/name": "vlmflow-endpoint",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "vlmflow",
        "vlmflow.dev/model-version": str(version["version"]),
        "vlmflow.dev/model-hash": version["model_hash"][:16],  # a label may have 63 characters, a sha256 has 64
    }
    annotations = _annotations(config) | _lineage(version, image, config, data_revision)
    # The digest covers everything that KServe copies to the pods. The run's ID is added afterwards, so that another run
    # of the same deployment does not restart them.
    text = json.dumps([runtimes.to_json(predictor), labels, annotations], sort_keys=True)
    predictor.labels = {DIGEST: hashlib.sha256(text.encode()).hexdigest()[:16]}
    if run := os.environ.get("VLMFLOW_KFP_RUN"):
        annotations["vlmflow.dev/kfp-run"] = run
    metadata = client.V1ObjectMeta(
        name=name, namespace=config.namespace_or_default(), labels=labels, annotations=annotations
    )
    return runtimes.to_json(
        V1beta1InferenceService(
            api_version="serving.kserve.io/v1beta1",
            kind="InferenceService",
            metadata=metadata,
            spec=V1beta1InferenceServiceSpec(predictor=predictor),
        )
    )


def _lineage(version: dict[str, Any], image: str, config: DeployConfig, data_revision: str) -> dict[str, str]:
    """The annotations that record where the deployment comes from."""
    lineage = {
        "model-uri": version["uri"],
        "model-sha256": version["model_hash"],
        "mlflow-run": version.get("run_id") or "",
        "data-revision": data_revision,
        "image": "" if config.runtime == "huggingface" else image,
    }
    return {f"vlmflow.dev/{key}": value for key, value in lineage.items() if value}


def _annotations(config: DeployConfig) -> dict[str, str]:
    """The annotations that configure KServe's mode and autoscaler."""
    annotations = {"serving.kserve.io/deploymentMode": config.mode}
    if config.mode == "Knative":
        annotations["serving.kserve.io/enable-tag-routing"] = "true"  # gives the canary an address of its own
        if config.scale_metric in ("cpu", "memory"):
            annotations["autoscaling.knative.dev/class"] = "hpa.autoscaling.knative.dev"
    if config.scale_metric == "prometheus":
        annotations["serving.kserve.io/autoscalerClass"] = "keda"
    return annotations


def _predictor(storage: str, image: str, config: DeployConfig) -> Any:
    from kserve import V1beta1ModelFormat, V1beta1ModelSpec, V1beta1PredictorSpec
    from kubernetes import client

    size = {"cpu": config.cpu, "memory": config.memory}
    gpus = {"nvidia.com/gpu": str(config.gpus)} if config.gpus else {}
    model = V1beta1ModelSpec(
        model_format=V1beta1ModelFormat(name=config.runtime),
        runtime=runtimes.runtime_name(config, image),
        storage_uri=storage,
        resources=client.V1ResourceRequirements(requests=size, limits={**size, **gpus}),
    )
    if config.runtime == "huggingface":
        model.args = ["--model_name={{.Name}}"]
    tolerations = [
        client.V1Toleration(
            key=taint.key, operator=taint.operator, value=taint.value or None, effect=taint.effect or None
        )
        for taint in config.tolerations
    ]
    return V1beta1PredictorSpec(
        model=model,
        min_replicas=config.min_replicas,
        max_replicas=config.max_replicas,
        service_account_name=config.service_account or ("serving" if storage.startswith("s3://") else "default"),
        node_selector=config.node_selector or None,
        tolerations=tolerations or None,
        security_context=client.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=1000,
            fs_group=1000,
            seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
        ),
        **_scaling(config),
    )


def _scaling(config: DeployConfig) -> dict[str, Any]:
    from kserve import (
        V1beta1AutoScalingSpec,
        V1beta1ExternalMetrics,
        V1beta1ExternalMetricSource,
        V1beta1MetricsSpec,
        V1beta1MetricTarget,
    )

    if not config.scale_metric:
        return {}
    if config.scale_metric != "prometheus":
        percent = {"scale_metric_type": "Utilization"} if config.scale_metric in ("cpu", "memory") else {}
        return {"scale_metric": config.scale_metric, "scale_target": config.scale_target, **percent}
    metric = V1beta1ExternalMetrics(backend="prometheus", query=config.scale_query, server_address=config.prometheus)
    target = V1beta1MetricTarget(type="Value", value=str(config.scale_target))
    source = V1beta1ExternalMetricSource(metric=metric, target=target)
    return {"auto_scaling": V1beta1AutoScalingSpec(metrics=[V1beta1MetricsSpec(type="External", external=source)])}


def write(folder: Path, service: dict[str, Any], runtime: dict[str, Any] | None) -> Path:
    """Write `inferenceservice.yaml` and `servingruntime.yaml` to `folder`, ready for `kubectl apply -f`."""
    folder.mkdir(parents=True, exist_ok=True)
    for manifest in filter(None, (runtime, service)):
        text = yaml.safe_dump(manifest, sort_keys=False)
        (folder / f"{manifest['kind'].lower()}.yaml").write_text(text, encoding="utf-8")
    return folder


def check_name(name: str) -> None:
    """Raises ServiceError if a Service of our manifests in the same namespace has the name of the endpoint."""
    if name in SERVICES:
        raise ServiceError(
            f"register.name: the endpoint of the model {name!r} would have the name of another Service; "
            "choose another name"
        )


def dns_name(name: str) -> str:
    """Convert `name` to a DNS label: lower-case letters, digits and hyphens, starting with a letter.

    At most 50 characters, because KServe appends to it.
    """
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-")
    return text if text[:1].isalpha() else f"model-{text}".rstrip("-")
