"""The KServe model: one checkpoint behind KServe's V1 and V2 protocols. `chat.py` adds OpenAI chat.

A V1 instance is `{"image": {"b64": …}, "prompt": …}` or one of the other forms in `v1_instances.py`. A request that
the model cannot serve is rejected with a list of its abilities.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput
from PIL import Image

from vlmflow.serving.request_images import parse_image

MAX_NEW_TOKENS = 64  # unless the request sets it
MAX_INSTANCES = 64  # in one V1 request


class Predictor(Model):
    """A loaded checkpoint that answers requests, one batch at a time."""

    def __init__(self, name: str, model_dir: str | Path):
        super().__init__(name)
        self.model_dir = Path(model_dir)
        self.lock = asyncio.Lock()  # the model is not safe to run from two threads

    def load(self) -> bool:
        """Load the checkpoint.

        Raises:
            ModelError: `model_dir` is not a checkpoint, or transformers cannot load it.
        """
        from vlmflow.serving.resolve import resolve

        folder = resolve(self.model_dir)  # before the import of torch and transformers, which takes seconds
        from vlmflow.artifacts.checkpoint import Checkpoint
        from vlmflow.inference import loading

        self.loaded = loading.load(folder)
        self.model_hash: str = self.loaded.card.get("hash") or Checkpoint(folder).hash
        self.ready = True
        return self.ready

    @property
    def abilities(self) -> frozenset[str]:
        """The tasks that the model can do: chat, classify, embed, …"""
        return self.loaded.abilities

    async def answer(self, images: list[Image.Image], prompts: list[str], **options: Any) -> list[str]:
        """Answer one prompt about each image.

        Args:
            options: max_new_tokens, temperature, seed.

        Raises:
            ValueError: the model cannot chat, or a prompt contains one of its control tokens or is too long.
        """
        from vlmflow.inference import generation
        from vlmflow.serving.v1_instances import require_ability

        require_ability(self.loaded, "chat")
        for prompt in prompts:
            self._check_prompt(prompt, options["max_new_tokens"])
        return await self._run(generation.chat, self.loaded, images, prompts, **options)

    def _check_prompt(self, prompt: str, max_new_tokens: int) -> None:
        from vlmflow.inference import generation

        processor, config = self.loaded.processor, self.loaded.model.config.get_text_config()
        if control_tokens := [token for token in processor.tokenizer.all_special_tokens if token in prompt]:
            raise ValueError(f"prompt: {control_tokens[0]!r} is a control token of the model; leave it out")
        image_tokens = getattr(processor, "image_tokens", None) or getattr(processor, "image_seq_len", 0)
        length = len(processor.tokenizer(generation.chat_prompt(processor, prompt))["input_ids"]) + image_tokens
        if length + max_new_tokens > (limit := config.max_position_embeddings):
            raise ValueError(
                f"prompt: too long: {length} tokens and {max_new_tokens} new ones exceed the model's limit of {limit}"
            )

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer a V1 request (a mapping) or a V2 request (an InferRequest)."""
        try:
            if isinstance(payload, InferRequest):
                return await self._predict_v2(payload)
            return {"predictions": await self._predict_v1(payload)}
        except ValueError as error:
            raise InvalidInput(str(error)) from None

    async def _predict_v1(self, payload: Any) -> list[Any]:
        instances = payload.get("instances") if isinstance(payload, dict) else None
        if not isinstance(instances, list) or not instances or not all(isinstance(i, dict) for i in instances):
            raise ValueError('expected {"instances": [{"image": {"b64": …}, "prompt": …}, …]}')
        if len(instances) > MAX_INSTANCES:
            raise ValueError(f"{len(instances)} instances in one request; at most {MAX_INSTANCES} are allowed")
        return await self._answer_instances(instances, _max_new_tokens(payload.get("parameters")))

    async def _predict_v2(self, request: InferRequest) -> InferResponse:
        columns = {tensor.name: _string_values(tensor) for tensor in request.inputs}
        if "image" not in columns or len({len(values) for values in columns.values()}) != 1:
            raise ValueError("expected the BYTES inputs `image` (base64) and `prompt`, of equal length")
        images = [parse_image(value) for value in columns["image"]]
        prompts = columns.get("prompt")
        if prompts is None:
            raise ValueError("expected the BYTES input `prompt`")
        answers = await self.answer(images, prompts, max_new_tokens=_max_new_tokens(request.parameters))
        output = InferOutput(name="answer", shape=[len(answers)], datatype="BYTES", data=answers)
        return InferResponse(model_name=self.name, infer_outputs=[output], response_id=request.id or "")

    async def _answer_instances(self, instances: list[dict[str, Any]], max_new_tokens: int) -> list[Any]:
        """Answer all prompts as one batch and the other instances one by one; results keep the instances' order."""
        from vlmflow.serving import v1_instances

        results: list[Any] = [None] * len(instances)
        chats: list[tuple[int, Image.Image, str]] = []  # index, image, prompt
        for index, instance in enumerate(instances):
            if unknown := instance.keys() - set(v1_instances.KEYS):
                allowed = ", ".join(v1_instances.KEYS)
                raise ValueError(f"instance {index}: {sorted(unknown)[0]!r} is unknown; expected one of {allowed}")
            if "prompt" in instance:
                image = parse_image(instance.get("image"))
                v1_instances.require_ability(self.loaded, "chat")
                chats.append((index, image, v1_instances.require_text(instance["prompt"], "prompt")))
            else:
                results[index] = await self._run(v1_instances.answer, self.loaded, instance)
        if chats:
            images, prompts = [image for _, image, _ in chats], [prompt for _, _, prompt in chats]
            answers = await self.answer(images, prompts, max_new_tokens=max_new_tokens)
            for (index, _, _), answer in zip(chats, answers, strict=True):
                results[index] = {"answer": answer}
        return results

    async def _run(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Run `function` in a thread, so that the event loop keeps answering health checks."""
        async with self.lock:
            return await asyncio.to_thread(function, *arguments, **options)


def _max_new_tokens(parameters: Any) -> int:
    value = (parameters or {}).get("max_new_tokens", MAX_NEW_TOKENS)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1024:
        raise ValueError(f"max_new_tokens: expected 1 to 1024, got {value!r}")
    return value


def _string_values(tensor: Any) -> list[str]:
    if tensor.datatype != "BYTES":
        raise ValueError(f"input {tensor.name!r}: expected BYTES, got {tensor.datatype}")
    values = tensor.as_numpy().reshape(-1).tolist()
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]
