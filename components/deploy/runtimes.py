"""Who serves the model in the cluster: our predictor, vLLM, or KServe's own runtime for Hugging Face models."""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from components.deploy.config import DeployConfig
from vlmflow.errors import ModelError

MOUNT = "/mnt/models"  # where KServe's storage initializer puts the model
PORT = 8080
OPENAI = {"vlmflow": "/openai/v1", "vllm": "/v1", "huggingface": "/openai/v1"}  # where each has OpenAI's protocol
CLUSTER_OWN = "kserve-huggingfaceserver"  # a ClusterServingRuntime that KServe brings

# Those that take pictures and text and answer with text, of what transformers has a class for: `_MULTIMODAL_MODELS` in
# vllm/model_executor/models/registry.py. vLLM drops and adds with each release; the image's own has the last word.
VLLM_KNOWS = (
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


def check(model: Path, section: DeployConfig) -> None:
    """Raises ModelError if the section's runtime cannot serve the checkpoint `model`, by its architecture."""
    if section.runtime == "vlmflow":
        return
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    known = config.get("architectures") or [config.get("model_type", "nothing")]
    if not set(known) & set(VLLM_KNOWS):
        raise ModelError(
            f"{model}: {known[0]} is no architecture that vLLM knows; serve it by deploy.runtime: vlmflow "
            f"(vLLM knows {', '.join(VLLM_KNOWS)})"
        )


def name(section: DeployConfig, image: str) -> str:
    """The runtime's name. Ours goes by its content: what runs by an old one is never changed under it."""
    if section.runtime == "huggingface":
        return CLUSTER_OWN
    text = json.dumps(_spec(section, image), sort_keys=True)
    return f"{section.runtime}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def serving_runtime(section: DeployConfig, image: str) -> dict[str, Any] | None:
    """The ServingRuntime, from the SDK's objects; None for the one that the cluster brings.

    KServe fills in `{{.Name}}`, the name of the InferenceService.
    """
    if section.runtime == "huggingface":
        return None
    from kserve import V1alpha1ServingRuntime
    from kubernetes import client

    return plain(
        V1alpha1ServingRuntime(
            api_version="serving.kserve.io/v1alpha1",
            kind="ServingRuntime",
            metadata=client.V1ObjectMeta(
                name=name(section, image),
                namespace=section.place(),
                labels={"app.kubernetes.io/managed-by": "vlmflow", "app.kubernetes.io/name": section.runtime},
            ),
            spec=_spec(section, image),
        )
    )


def plain(value: Any) -> dict[str, Any]:
    """An object of the SDK as JSON has it."""
    from kubernetes import client

    return cast(dict[str, Any], client.ApiClient().sanitize_for_serialization(value))


def _spec(section: DeployConfig, image: str) -> dict[str, Any]:
    from kserve import V1alpha1ServingRuntimeSpec, V1alpha1SupportedModelFormat
    from kubernetes import client

    container = _predictor(image) if section.runtime == "vlmflow" else _vllm(section, image)
    volumes = [client.V1Volume(name="tmp", empty_dir=client.V1EmptyDirVolumeSource())]
    if section.runtime == "vllm":  # its processes share tensors
        memory = client.V1EmptyDirVolumeSource(medium="Memory")
        volumes.append(client.V1Volume(name="shm", empty_dir=memory))
    return plain(
        V1alpha1ServingRuntimeSpec(
            supported_model_formats=[V1alpha1SupportedModelFormat(name=section.runtime, auto_select=False)],
            protocol_versions=["v1", "v2"] if section.runtime == "vlmflow" else ["v1"],
            containers=[container],
            volumes=volumes,
        )
    )


def _predictor(image: str) -> Any:
    return _container(
        image,
        command=["python", "-m", "vlmflow.serving.predictor"],
        args=["--model_name={{.Name}}", f"--model_dir={MOUNT}", f"--http_port={PORT}", "--enable_grpc=false"],
        environment={"HOME": "/tmp"},
        mounts={"tmp": "/tmp"},
        ready="/v2/models/{{.Name}}/ready",
        live="/v2/health/live",
    )


def _vllm(section: DeployConfig, image: str) -> Any:
    args = [f"--model={MOUNT}", "--served-model-name={{.Name}}", f"--port={PORT}"]
    return _container(
        image,
        command=["python3", "-m", "vllm.entrypoints.openai.api_server"],
        args=[*args, *([f"--tensor-parallel-size={section.gpus}"] if section.gpus > 1 else [])],
        environment={"HOME": "/tmp", "USER": "vllm"},  # torch asks who it is, and user 1000 has no name in that image
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
        startup_probe=probe(live, 360),  # a model of many GB is an hour's matter, and is not killed meanwhile
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
