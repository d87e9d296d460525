"""The predictor: one checkpoint behind KServe's V1 and V2 protocols and OpenAI chat.

    python -m vlmflow.serving.predictor --model_dir /mnt/models --model_name vlm --http_port 8080

A V1 instance is `{"image": {"b64": …}, "prompt": …}`, or one of those in `instances.py`; what the model cannot do is
refused with what it can.
"""

import asyncio
import os
import signal
import sys
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput
from kserve.model_server import app
from kserve.model_server import parser as kserve_parser
from PIL import Image

from vlmflow.errors import EXIT_CODE, VlmflowError
from vlmflow.serving import chat
from vlmflow.serving.body_limit import BodyLimit
from vlmflow.serving.request_images import parse_image

MAX_NEW_TOKENS = 64
MAX_INSTANCES = 64

# At module level, where KServe's server finds them.
app.include_router(chat.router)
app.add_middleware(BodyLimit)


class Predictor(Model):
    """A loaded checkpoint that answers requests, one batch at a time."""

    def __init__(self, name: str, model_dir: str | Path):
        super().__init__(name)
        self.model_dir = Path(model_dir)
        self.turn = asyncio.Lock()  # the model is not made for two threads at once

    def load(self) -> bool:
        """Load the checkpoint.

        Raises:
            ModelError: it is none.
        """
        from vlmflow.serving.resolve import resolve

        folder = resolve(self.model_dir)  # before torch and transformers are imported, which takes seconds
        from vlmflow.artifacts.checkpoint import Checkpoint
        from vlmflow.inference import loading

        self.loaded = loading.load(folder)
        self.model_hash: str = self.loaded.card.get("hash") or Checkpoint(folder).hash
        self.ready = True
        return self.ready

    @property
    def abilities(self) -> frozenset[str]:
        """What the model can do: chat, classify, embed, …"""
        return self.loaded.abilities

    async def answer(self, images: list[Image.Image], prompts: list[str], **options: Any) -> list[str]:
        """Answer one prompt for each picture.

        Args:
            options: max_new_tokens, temperature, seed.

        Raises:
            ValueError: the model does not chat, or a prompt holds one of its control tokens, or is too long for it.
        """
        from vlmflow.inference import loading
        from vlmflow.serving.v1_instances import require_ability

        require_ability(self.loaded, "chat")
        for prompt in prompts:
            self._check_prompt(prompt, options["max_new_tokens"])
        return await self._run(loading.chat, self.loaded, images, prompts, **options)

    def _check_prompt(self, prompt: str, max_new_tokens: int) -> None:
        from vlmflow.inference import loading

        processor, config = self.loaded.processor, self.loaded.model.config.get_text_config()
        if held := [token for token in processor.tokenizer.all_special_tokens if token in prompt]:
            raise ValueError(f"prompt: {held[0]!r} is a control token of the model")
        picture_tokens = getattr(processor, "image_tokens", None) or getattr(processor, "image_seq_len", 0)
        taken = len(processor.tokenizer(loading.chat_prompt(processor, prompt))["input_ids"]) + picture_tokens
        if taken + max_new_tokens > (room := config.max_position_embeddings):
            raise ValueError(f"prompt: {taken} tokens and {max_new_tokens} new ones, the model has room for {room}")

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        """V1 (a mapping) or V2 (an InferRequest)."""
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
            raise ValueError(f"{len(instances)} instances, at most {MAX_INSTANCES} are taken at once")
        return await self._each(instances, _tokens(payload.get("parameters")))

    async def _predict_v2(self, request: InferRequest) -> InferResponse:
        columns = {tensor.name: _strings(tensor) for tensor in request.inputs}
        if "image" not in columns or len({len(values) for values in columns.values()}) != 1:
            raise ValueError("expected the BYTES inputs `image` (base64) and `prompt`, of one length")
        images = [parse_image(value) for value in columns["image"]]
        prompts = columns.get("prompt")
        if prompts is None:
            raise ValueError("expected the BYTES input `prompt`")
        answers = await self.answer(images, prompts, max_new_tokens=_tokens(request.parameters))
        output = InferOutput(name="answer", shape=[len(answers)], datatype="BYTES", data=answers)
        return InferResponse(model_name=self.name, infer_outputs=[output], response_id=request.id or "")

    async def _each(self, instances: list[dict[str, Any]], max_new_tokens: int) -> list[Any]:
        """Prompts are answered as one batch, the other kinds one by one; results stand in the order asked."""
        from vlmflow.serving import v1_instances as kinds

        results: list[Any] = [None] * len(instances)
        asked: list[tuple[int, Image.Image, str]] = []
        for place, instance in enumerate(instances):
            if unknown := instance.keys() - set(kinds.KEYS):
                raise ValueError(f"instance {place}: {sorted(unknown)[0]!r} is unknown; known: {', '.join(kinds.KEYS)}")
            if "prompt" in instance:
                image = parse_image(instance.get("image"))
                kinds.require_ability(self.loaded, "chat")
                asked.append((place, image, kinds.require_text(instance["prompt"], "prompt")))
            else:
                results[place] = await self._run(kinds.answer, self.loaded, instance)
        if asked:
            images, prompts = [image for _, image, _ in asked], [prompt for _, _, prompt in asked]
            answers = await self.answer(images, prompts, max_new_tokens=max_new_tokens)
            for (place, _, _), answer in zip(asked, answers, strict=True):
                results[place] = {"answer": answer}
        return results

    async def _run(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        async with self.turn:
            return await asyncio.to_thread(function, *arguments, **options)


def _tokens(parameters: Any) -> int:
    wanted = (parameters or {}).get("max_new_tokens", MAX_NEW_TOKENS)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= 1024:
        raise ValueError(f"max_new_tokens: expected 1 to 1024, got {wanted!r}")
    return wanted


def _strings(tensor: Any) -> list[str]:
    if tensor.datatype != "BYTES":
        raise ValueError(f"input {tensor.name!r}: expected BYTES, got {tensor.datatype}")
    values = tensor.as_numpy().reshape(-1).tolist()
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]


def _stop_with_parent() -> None:
    """Stop when stdin closes: the one who started this process has gone."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def arguments(given: Sequence[str] | None = None) -> Namespace:
    """Read the command line: KServe's own options and ours."""
    parser = ArgumentParser(parents=[kserve_parser], conflict_handler="resolve", description=__doc__)
    parser.add_argument("--model_dir", default="/mnt/models", help="Folder of the checkpoint.")
    parser.add_argument("--workers", type=int, default=1, choices=[1], help="One: more replicas serve more requests.")
    parser.add_argument("--until_stdin_closes", action="store_true", help="Stop when stdin closes.")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Load the checkpoint and serve it until SIGTERM. Returns the exit code."""
    options = arguments(given)
    predictor = Predictor(options.model_name, options.model_dir)
    try:
        predictor.load()
    except VlmflowError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CODE
    app.state.predictor = predictor
    if options.until_stdin_closes:
        _stop_with_parent()
    server = ModelServer(http_port=options.http_port, grpc_port=options.grpc_port, enable_grpc=options.enable_grpc)
    server.start([predictor])
    return 0


if __name__ == "__main__":
    # KServe imports this module by its name as well; running that one keeps a single `app` and a single class.
    from vlmflow.serving.predictor import main as run

    sys.exit(run())
