"""The runtimes that serve a model in a cluster: our predictor, vLLM, or KServe's runtime for Hugging Face models."""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from components.deploy.config import DeployConfig
from vlmflow.errors import ModelError

MODEL_DIR = "/mnt/models"  # where KServe's storage initializer puts the model
PORT = 8080
OPENAI_PATHS = {"vlmflow": "/openai/v1", "vllm": "/v1", "huggingface": "/openai/v1"}  # of OpenAI's protocol
HUGGINGFACE_RUNTIME = "kserve-huggingfaceserver"  # a ClusterServingRuntime that is part of KServe

# Architectures that take images and text, answer with text, and have a class in transformers. From `_MULTIMODAL_MODELS`
# in vllm/model_executor/models/registry.py. Each vLLM release changes the list; the release in the image decides.
VLLM_ARCHITECTURES = (
    "AriaForConditionalGeneration",
    "AyaVisionForConditionalGeneration",
    "Blip2ForConditionalGeneration",
    "ChameleonForConditionalGeneration",
    "Cohere2VisionForConditionalGeneration",
    "FuyuForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma3nForConditionalGeneration",
    "Glm4vForConditionalGeneration",
    "Glm4vMoeForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)


def check_architecture(model: Path, config: DeployConfig) -> None:
    """Raises ModelError if the configured runtime does not support the architecture of the checkpoint `model`."""
    if config.runtime == "vlmflow":
        return
    model_config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    architectures = model_config.get("architectures") or [model_config.get("model_type", "nothing")]
    if not set(architectures) & set(VLLM_ARCHITECTURES):
        raise ModelError(
            f"{model}: vLLM does not support the architecture {architectures[0]}; set deploy.runtime: vlmflow "
            f"(vLLM supports {', '.join(VLLM_ARCHITECTURES)})"
        )


def runtime_name(config: DeployConfig, image: str) -> str:
    """Return the runtime's name. It contains a hash of the spec, so that a new spec never changes running pods."""
    if config.runtime == "huggingface":
        return HUGGINGFACE_RUNTIME
    text = json.dumps(_spec(config, image), sort_keys=True)
    return f"{config.runtime}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def serving_runtime(config: DeployConfig, image: str) -> dict[str, Any] | None:
    """Build the ServingRuntime from the SDK's objects. None for KServe's own runtime, which the cluster already has.

    KServe replaces `{{.Name}}` with the name of the InferenceService.
    """
    if config.runtime == "huggingface":
        return None
    from kserve import V1alpha1ServingRuntime
    from kubernetes import client

    return to_json(
        V1alpha1ServingRuntime(
            api_version="serving.kserve.io/v1alpha1",
            kind="ServingRuntime",
            metadata=client.V1ObjectMeta(
                name=runtime_name(config, image),
                namespace=config.namespace_or_default(),
                labels={"app.kubernetes.io/managed-by": "vlmflow", "app.kubernetes.io/name": config.runtime},
            ),
            spec=_spec(config, image),
        )
    )


def to_json(value: Any) -> dict[str, Any]:
    """Convert an object of the SDK to plain JSON values."""
    from kubernetes import client

    return cast(dict[str, Any], client.ApiClient().sanitize_for_serialization(value))


def _spec(config: DeployConfig, image: str) -> dict[str, Any]:
    from kserve import V1alpha1ServingRuntimeSpec, V1alpha1SupportedModelFormat
    from kubernetes import client

    container = _vlmflow_container(image) if config.runtime == "vlmflow" else _vllm_container(config, image)
    volumes = [client.V1Volume(name="tmp", empty_dir=client.V1EmptyDirVolumeSource())]
    if config.runtime == "vllm":  # its processes share tensors through /dev/shm
        memory = client.V1EmptyDirVolumeSource(medium="Memory")
        volumes.append(client.V1Volume(name="shm", empty_dir=memory))
    return to_json(
        V1alpha1ServingRuntimeSpec(
            supported_model_formats=[V1alpha1SupportedModelFormat(name=config.runtime, auto_select=False)],
            protocol_versions=["v1", "v2"] if config.runtime == "vlmflow" else ["v1"],
            containers=[container],
            volumes=volumes,
        )
    )


def _vlmflow_container(image: str) -> Any:
    return _container(
        image,
        command=["python", "-m", "vlmflow.serving.server"],
        args=["--model_name={{.Name}}", f"--model_dir={MODEL_DIR}", "--host=0.0.0.0", f"--http_port={PORT}"],
        environment={"HOME": "/tmp"},
        mounts={"tmp": "/tmp"},
        ready="/v2/models/{{.Name}}/ready",
        live="/v2/health/live",
    )


def _vllm_container(config: DeployConfig, image: str) -> Any:
    args = [f"--model={MODEL_DIR}", "--served-model-name={{.Name}}", f"--port={PORT}"]
    return _container(
        image,
        command=["python3", "-m", "vllm.entrypoints.openai.api_server"],
        args=[*args, *([f"--tensor-parallel-size={config.gpus}"] if config.gpus > 1 else [])],
        environment={"HOME": "/tmp", "USER": "vllm"},  # torch needs a user name, and user 1000 has none in that image
        mounts={"tmp": "/tmp", "shm": "/dev/shm"},
        ready="/health",
        live="/health",
    )


def _container(
    image: str,
    *,
    command: list[str],
    args: list[str],
    environment: dict[str, str],
    mounts: dict[str, str],
    ready: str,
    live: str,
) -> Any:
    from kubernetes import client

    def probe(path: str, failures: int) -> Any:
        action = client.V1HTTPGetAction(path=path, port=PORT)
        return client.V1Probe(http_get=action, period_seconds=10, timeout_seconds=5, failure_threshold=failures)

    return client.V1Container(
        name="kserve-container",
        image=image,
        command=command,
        args=args,
        env=[client.V1EnvVar(name=key, value=value) for key, value in environment.items()],
        ports=[client.V1ContainerPort(container_port=PORT, protocol="TCP")],
        startup_probe=probe(live, 360),  # a model of many GB may load for an hour
        readiness_probe=probe(ready, 6),
        liveness_probe=probe(live, 6),
        security_context=client.V1SecurityContext(
            allow_privilege_escalation=False,
            privileged=False,
            run_as_non_root=True,
            capabilities=client.V1Capabilities(drop=["ALL"]),
            read_only_root_filesystem=True,
        ),
        volume_mounts=[client.V1VolumeMount(name=key, mount_path=path) for key, path in mounts.items()],
    )
