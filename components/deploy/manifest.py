"""The KServe InferenceService of a model version."""

import re
from pathlib import Path
from typing import Any, cast

import yaml

from components.deploy.deployment import Deployment

MOUNT = "/mnt/models"  # where KServe's storage initializer puts what STORAGE_URI names


def inference_service(version: dict[str, Any], storage: str, image: str, section: Deployment) -> dict[str, Any]:
    """Build the manifest from the SDK's objects.

    Args:
        version: `version.json` of the registered version.
        storage: URI of the version's folder, for KServe's storage initializer.
        image: the container image that holds this code.
    """
    from kserve import V1beta1InferenceService, V1beta1InferenceServiceSpec, V1beta1PredictorSpec
    from kubernetes import client

    name = dns_name(version["name"])
    metadata = client.V1ObjectMeta(
        name=name,
        namespace=section.namespace,
        labels={
            "app.kubernetes.io/name": name,
            "app.kubernetes.io/managed-by": "vlmflow",
            "vlmflow.dev/model-version": str(version["version"]),
            "vlmflow.dev/model-hash": version["model_hash"][:16],  # a label holds 63 characters, a sha256 has 64
        },
        annotations={"vlmflow.dev/model-uri": version["uri"], "vlmflow.dev/model-sha256": version["model_hash"]},
    )
    container = client.V1Container(
        name="kserve-container",
        image=image,
        command=["python", "-m", "components.serve.predictor"],
        args=[f"--model_name={name}", f"--model_dir={MOUNT}", "--http_port=8080", "--enable_grpc=false"],
        env=[client.V1EnvVar(name="STORAGE_URI", value=storage), client.V1EnvVar(name="HOME", value="/tmp")],
        ports=[client.V1ContainerPort(container_port=8080, protocol="TCP")],
        readiness_probe=_probe(client, f"/v2/models/{name}/ready"),
        liveness_probe=_probe(client, "/v2/health/live"),
        resources=client.V1ResourceRequirements(
            requests={"cpu": section.cpu, "memory": section.memory},
            limits={
                "cpu": section.cpu,
                "memory": section.memory,
                **({"nvidia.com/gpu": str(section.gpus)} if section.gpus else {}),
            },
        ),
        security_context=client.V1SecurityContext(
            allow_privilege_escalation=False,
            capabilities=client.V1Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        ),
        volume_mounts=[client.V1VolumeMount(name="tmp", mount_path="/tmp")],
    )
    predictor = V1beta1PredictorSpec(
        containers=[container],
        min_replicas=section.min_replicas,
        max_replicas=section.max_replicas,
        service_account_name=section.service_account,
        security_context=client.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=1000,
            fs_group=1000,
            seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
        ),
        volumes=[client.V1Volume(name="tmp", empty_dir=client.V1EmptyDirVolumeSource())],
    )
    service = V1beta1InferenceService(
        api_version="serving.kserve.io/v1beta1",
        kind="InferenceService",
        metadata=metadata,
        spec=V1beta1InferenceServiceSpec(predictor=predictor),
    )
    return cast(dict[str, Any], client.ApiClient().sanitize_for_serialization(service))


def write(folder: Path, service: dict[str, Any]) -> Path:
    """Write the manifest as `inferenceservice.yaml`, ready for `kubectl apply -f`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "inferenceservice.yaml"
    path.write_text(yaml.safe_dump(service, sort_keys=False), encoding="utf-8")
    return path


def dns_name(name: str) -> str:
    """`name` as Kubernetes takes it: lower-case letters, digits and hyphens, 50 at most (KServe adds to it)."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "model"


def _probe(client: Any, path: str) -> Any:
    return client.V1Probe(http_get=client.V1HTTPGetAction(path=path, port=8080), period_seconds=10, failure_threshold=6)
