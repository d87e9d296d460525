"""OpenAI's chat protocol: `/openai/v1/chat/completions` and `/openai/v1/models`.

A request is one user message with one image, as an `image_url` with a data URI, and its text. Decoding is greedy unless
`temperature` is set; then the answer is sampled with `seed`. A stream sends the whole answer in one chunk.
"""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from vlmflow.serving.predictor import Predictor
from vlmflow.serving.request_images import parse_image

router = APIRouter(prefix="/openai/v1")

# Options that would change the answer and are not implemented: rejected, not ignored.
_UNSUPPORTED = ("tools", "functions", "response_format", "logprobs", "stop", "audio", "top_p")


@router.get("/models")
async def models(request: Request) -> Response:
    """List the served model with its abilities, its mask token if it fills masks, and the hash that lineage uses."""
    predictor: Predictor = request.app.state.predictor
    entry = {"id": predictor.name, "object": "model", "created": 0, "owned_by": "vlmflow"}
    mask = getattr(predictor.loaded.tokenizer, "mask_token", None) if "fill_mask" in predictor.abilities else None
    extras = {"abilities": sorted(predictor.abilities), **({"mask_token": mask} if mask else {})}
    extras["model_hash"] = predictor.model_hash
    return JSONResponse({"object": "list", "data": [{**entry, **extras}]})


@router.post("/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answer one question about one image."""
    predictor: Predictor = request.app.state.predictor
    try:
        body = json.loads(await request.body())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return _error(f"the body is not JSON: {error}")
    if not isinstance(body, dict):
        return _error("the body must be a JSON object")
    if body.get("model") != predictor.name:
        return _error(f"the model {body.get('model')!r} does not exist; this endpoint serves {predictor.name!r}", 404)
    try:
        image, prompt = parse_request(body)
        (answer,) = await predictor.answer([image], [prompt], **decoding_options(body))
    except ValueError as error:
        return _error(str(error))
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": predictor.name}
    if body.get("stream"):
        return StreamingResponse(_stream(head, answer), media_type="text/event-stream")
    choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice]})


def parse_request(body: dict[str, Any]) -> tuple[Image.Image, str]:
    """Return the image and the text of a chat request.

    Raises:
        ValueError: the request is not one user message with one image and text, or uses an unsupported option.
    """
    if body.get("n", 1) != 1:
        raise ValueError(f"n: only 1 answer is supported, got {body['n']!r}")
    if unsupported := [key for key in _UNSUPPORTED if body.get(key) and (key, body[key]) != ("top_p", 1)]:
        raise ValueError(f"{unsupported[0]}: not supported by this model")
    messages = body.get("messages")
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        raise ValueError("messages: expected exactly one user message, with the image in it")
    if messages[0].get("role") != "user":
        raise ValueError(f"messages: expected the role user, got {messages[0].get('role')!r}")
    parts = messages[0].get("content")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError("content: expected a list of one image_url part and one text part")
    images = [part.get("image_url") for part in parts if part.get("type") == "image_url"]
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    if len(images) + len(texts) != len(parts):
        raise ValueError("content: only image_url and text parts are supported")
    if len(images) != 1:
        raise ValueError(f"content: expected exactly one image, got {len(images)}")
    prompt = "\n".join(text for text in texts if isinstance(text, str)).strip()
    if not prompt:
        raise ValueError("content: the text is missing; add a text part with a question about the image")
    image_url = images[0]
    return parse_image(image_url.get("url") if isinstance(image_url, dict) else image_url), prompt


def decoding_options(body: dict[str, Any]) -> dict[str, Any]:
    """Return max_new_tokens, temperature and seed of a chat request.

    Raises:
        ValueError: a value is out of range.
    """
    max_tokens = body.get("max_completion_tokens") or body.get("max_tokens") or 64
    temperature, seed = body.get("temperature") or 0, body.get("seed") or 0
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or not 1 <= max_tokens <= 1024:
        raise ValueError(f"max_tokens: expected 1 to 1024, got {max_tokens!r}")
    if not isinstance(temperature, int | float) or not 0 <= temperature <= 2:
        raise ValueError(f"temperature: expected 0 to 2, got {temperature!r}")
    if not isinstance(seed, int):
        raise ValueError(f"seed: expected a whole number, got {seed!r}")
    return {"max_new_tokens": max_tokens, "temperature": float(temperature), "seed": seed}


def _stream(head: dict[str, Any], answer: str) -> Iterator[str]:
    deltas = [({"role": "assistant", "content": ""}, None), ({"content": answer}, None), ({}, "stop")]
    for delta, reason in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def _error(message: str, status: int = 400) -> JSONResponse:
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status_code=status)
