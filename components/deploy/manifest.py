"""The KServe objects of a model version: an InferenceService, and the ServingRuntime that runs it."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from components.deploy import runtimes
from components.deploy.config import DeployConfig

DIGEST = "vlmflow.dev/deployment"  # label of the pods, and so what tells those of one deployment from another's


def inference_service(
    version: dict[str, Any], storage: str, image: str, section: DeployConfig, data_revision: str = ""
) -> dict[str, Any]:
    """Build the InferenceService from the SDK's objects.

    Args:
        version: `version.json` of the registered version.
        storage: URI of the checkpoint's folder, for KServe's storage initializer.
        image: the container image.
        data_revision: commit of the data, if it is versioned.
    """
    from kserve import V1beta1InferenceService, V1beta1InferenceServiceSpec
    from kubernetes import client

    name = dns_name(version["name"])
    predictor = _predictor(storage, image, section)
    labels = {
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/managed-by": "vlmflow",
        "vlmflow.dev/model-version": str(version["version"]),
        "vlmflow.dev/model-hash": version["model_hash"][:16],  # a label holds 63 characters, a sha256 has 64
    }
    lineage = {
        "model-uri": version["uri"],
        "model-sha256": version["model_hash"],
        "mlflow-run": version.get("run_id") or "",
        "data-revision": data_revision,
        "image": "" if section.runtime == "huggingface" else image,
    }
    annotations = _annotations(section) | {f"vlmflow.dev/{key}": value for key, value in lineage.items() if value}
    # All that KServe hands on to the pods.
    text = json.dumps([runtimes.to_json(predictor), labels, annotations], sort_keys=True)
    predictor.labels = {DIGEST: hashlib.sha256(text.encode()).hexdigest()[:16]}
    if run := os.environ.get("VLMFLOW_KFP_RUN"):
        annotations["vlmflow.dev/kfp-run"] = run
    metadata = client.V1ObjectMeta(name=name, namespace=section.place(), labels=labels, annotations=annotations)
    return runtimes.to_json(
        V1beta1InferenceService(
            api_version="serving.kserve.io/v1beta1",
            kind="InferenceService",
            metadata=metadata,
            spec=V1beta1InferenceServiceSpec(predictor=predictor),
        )
    )


def _annotations(section: DeployConfig) -> dict[str, str]:
    """How KServe is to run it."""
    found = {"serving.kserve.io/deploymentMode": section.mode}
    if section.mode == "Knative":
        found["serving.kserve.io/enable-tag-routing"] = "true"  # an address for the canary alone
        if section.scale_metric in ("cpu", "memory"):
            found["autoscaling.knative.dev/class"] = "hpa.autoscaling.knative.dev"
    if section.scale_metric == "prometheus":
        found["serving.kserve.io/autoscalerClass"] = "keda"
    return found


def _predictor(storage: str, image: str, section: DeployConfig) -> Any:
    from kserve import V1beta1ModelFormat, V1beta1ModelSpec, V1beta1PredictorSpec
    from kubernetes import client

    size = {"cpu": section.cpu, "memory": section.memory}
    gpus = {"nvidia.com/gpu": str(section.gpus)} if section.gpus else {}
    model = V1beta1ModelSpec(
        model_format=V1beta1ModelFormat(name=section.runtime),
        runtime=runtimes.runtime_name(section, image),
        storage_uri=storage,
        resources=client.V1ResourceRequirements(requests=size, limits={**size, **gpus}),
    )
    if section.runtime == "huggingface":
        model.args = ["--model_name={{.Name}}"]
    tolerations = [
        client.V1Toleration(key=each.key, operator=each.operator, value=each.value or None, effect=each.effect or None)
        for each in section.tolerations
    ]
    return V1beta1PredictorSpec(
        model=model,
        min_replicas=section.min_replicas,
        max_replicas=section.max_replicas,
        service_account_name=section.service_account,
        node_selector=section.node_selector or None,
        tolerations=tolerations or None,
        security_context=client.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=1000,
            fs_group=1000,
            seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
        ),
        **_scaling(section),
    )


def _scaling(section: DeployConfig) -> dict[str, Any]:
    from kserve import (
        V1beta1AutoScalingSpec,
        V1beta1ExternalMetrics,
        V1beta1ExternalMetricSource,
        V1beta1MetricsSpec,
        V1beta1MetricTarget,
    )

    if not section.scale_metric:
        return {}
    if section.scale_metric != "prometheus":
        percent = {"scale_metric_type": "Utilization"} if section.scale_metric in ("cpu", "memory") else {}
        return {"scale_metric": section.scale_metric, "scale_target": section.scale_target, **percent}
    metric = V1beta1ExternalMetrics(backend="prometheus", query=section.scale_query, server_address=section.prometheus)
    target = V1beta1MetricTarget(type="Value", value=str(section.scale_target))
    source = V1beta1ExternalMetricSource(metric=metric, target=target)
    return {"auto_scaling": V1beta1AutoScalingSpec(metrics=[V1beta1MetricsSpec(type="External", external=source)])}


def write(folder: Path, service: dict[str, Any], runtime: dict[str, Any] | None) -> Path:
    """Write `inferenceservice.yaml` and `servingruntime.yaml`, ready for `kubectl apply -f` on the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for manifest in filter(None, (runtime, service)):
        text = yaml.safe_dump(manifest, sort_keys=False)
        (folder / f"{manifest['kind'].lower()}.yaml").write_text(text, encoding="utf-8")
    return folder


def dns_name(name: str) -> str:
    """`name` as Kubernetes takes it: a letter, then letters, digits and hyphens, 50 at most (KServe adds to it)."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-")
    return text if text[:1].isalpha() else f"model-{text}".rstrip("-")
