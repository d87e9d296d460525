"""The KServe model: one checkpoint behind KServe's V1 and V2 protocols. `chat.py` adds OpenAI chat.

A V1 instance is `{"image": {"b64": …}, "prompt": …}` or one of the other forms in `v1_instances.py`. A request that
the model cannot serve is rejected with a list of its abilities.
"""

import asyncio
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kserve import InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput
from kserve.protocol.infer_type import to_http_parameters

if TYPE_CHECKING:
    from vlmflow.inference.generation import Answer

T = TypeVar("T")
MAX_ROWS = 64  # in one V2 request
STUCK_SECONDS = 600  # a request that runs for longer has hung


class Predictor(Model):
    """A loaded checkpoint that answers requests, one at a time."""

    def __init__(self, name: str, model_dir: str | Path):
        super().__init__(name)
        self.model_dir = Path(model_dir)
        # One thread: the model is not safe to run from two, and only one request's images are in memory at a time.
        self._thread = ThreadPoolExecutor(1, "model")
        self._busy_since: float | None = None

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

    async def healthy(self) -> bool:
        """Whether the model is loaded, its device works, and no request has run for longer than `STUCK_SECONDS`."""
        since = self._busy_since
        return self.ready and (since is None or time.monotonic() - since < STUCK_SECONDS)

    def get_input_types(self) -> list[dict[str, Any]]:
        """The inputs of V2."""
        names = ("image", "prompt") if "chat" in self.abilities else ()
        return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in names]

    def get_output_types(self) -> list[dict[str, Any]]:
        """The outputs of V2."""
        return [{"name": "answer", "datatype": "BYTES", "shape": [-1]}] if "chat" in self.abilities else []

    @property
    def abilities(self) -> frozenset[str]:
        """The tasks that the model can do: chat, classify, embed, …"""
        return self.loaded.abilities

    async def answer(self, questions: list[tuple[Any, Any]], **options: Any) -> "list[Answer]":
        """Answer questions, each an image and a prompt, as one batch; see `answering.answer_prompts`."""
        from vlmflow.serving import answering

        reader = answering.image_reader(self.loaded)
        return await self._run(answering.answer_prompts, self.loaded, questions, reader, **options)

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """Answer a V1 request (a mapping) or a V2 request (an InferRequest)."""
        try:
            if isinstance(payload, InferRequest):
                return await self._predict_v2(payload)
            return {"predictions": await self._predict_v1(payload)}
        except ValueError as error:
            raise InvalidInput(str(error)) from None

    async def _predict_v1(self, payload: Any) -> list[Any]:
        from vlmflow.serving import v1_instances

        if not isinstance(payload, dict):
            raise ValueError('expected {"instances": [{"image": {"b64": …}, "prompt": …}, …]}')
        if unknown := sorted(payload.keys() - {"instances", "parameters"}):
            raise ValueError(f"{unknown[0]!r:.80} is unknown; expected instances and parameters")
        options = _options(payload.get("parameters"))
        return await self._run(v1_instances.answer_instances, self.loaded, payload.get("instances"), **options)

    async def _predict_v2(self, request: InferRequest) -> InferResponse:
        names = [tensor.name for tensor in request.inputs]
        if sorted(names) != ["image", "prompt"]:
            raise ValueError(
                f"expected the BYTES inputs image (base64) and prompt, got {', '.join(names) or 'none':.80}"
            )
        columns = {tensor.name: _string_values(tensor) for tensor in request.inputs}
        images, prompts = columns["image"], columns["prompt"]
        if len(images) != len(prompts) or not 1 <= len(images) <= MAX_ROWS:
            raise ValueError(
                f"expected as many images as prompts, 1 to {MAX_ROWS}, got {len(images)} and {len(prompts)}"
            )
        for output in request.request_outputs or []:
            if output.name != "answer":
                raise ValueError(f"output {output.name!r:.80} is unknown; the model returns answer")
        options = _options(to_http_parameters(request.parameters or {}), also=("binary_data_output",))
        answers = await self.answer(list(zip(images, prompts, strict=True)), **options)
        output = InferOutput("answer", [len(answers)], "BYTES", [answer.text for answer in answers])
        return InferResponse(
            model_name=self.name,
            infer_outputs=[output],
            response_id=request.id or "",
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    async def _run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Run `function` in the model's thread. A request that is cancelled while it waits is never run."""
        call = partial(self._call, function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        import torch

        self._busy_since = time.monotonic()
        try:
            return function(*arguments, **options)
        except torch.AcceleratorError:  # the device answers nothing any more until the process restarts
            self.ready = False
            raise
        finally:
            self._busy_since = None


def _options(parameters: Any, also: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the options in the `parameters` of a V1 or V2 request; KServe reads those in `also` itself."""
    from vlmflow.serving.answering import MAX_NEW_TOKENS

    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters: expected an object, got {parameters!r:.80}")
    if unknown := sorted(parameters.keys() - {"max_new_tokens", *also}):
        raise ValueError(f"parameters: {unknown[0]!r:.80} is unknown; expected max_new_tokens")
    value = parameters.get("max_new_tokens", MAX_NEW_TOKENS)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1024:
        raise ValueError(f"max_new_tokens: expected 1 to 1024, got {value!r:.80}")
    return {"max_new_tokens": value}


def _string_values(tensor: Any) -> list[str]:
    if tensor.datatype != "BYTES":
        raise ValueError(f"input {tensor.name!r}: expected BYTES, got {tensor.datatype:.80}")
    try:
        values = tensor.as_numpy().reshape(-1).tolist()
        texts = [value.decode() if isinstance(value, bytes) else value for value in values]
    except (ValueError, TypeError, OverflowError, struct.error) as error:
        raise ValueError(f"input {tensor.name!r}: {error}") from None
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"input {tensor.name!r}: expected texts")
    return texts
