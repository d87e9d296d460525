"""OpenAI's chat protocol: `/openai/v1/chat/completions` and `/openai/v1/models`.

One user message with one picture and its text, as `image_url` with a data URI. Decoding is greedy unless
`temperature` is given, and then sampled from `seed`. A stream brings the whole answer in one piece.
"""

import json
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from vlmflow.serving.request_images import parse_image

if TYPE_CHECKING:
    from vlmflow.serving.predictor import Predictor

router = APIRouter(prefix="/openai/v1")

# They would change the answer, and do not here: refused rather than ignored.
_UNSUPPORTED = ("tools", "functions", "response_format", "logprobs", "stop", "audio", "top_p")


@router.get("/models")
async def models(request: Request) -> Response:
    """List the model that is served, with what it can do and the hash that lineage knows it by."""
    predictor: Predictor = request.app.state.predictor
    entry = {"id": predictor.name, "object": "model", "created": 0, "owned_by": "vlmflow"}
    mask = getattr(predictor.loaded.tokenizer, "mask_token", None) if "fill" in predictor.abilities else None
    said = {"abilities": sorted(predictor.abilities), **({"mask_token": mask} if mask else {})}
    said["model_hash"] = predictor.model_hash
    return JSONResponse({"object": "list", "data": [{**entry, **said}]})


@router.post("/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answer one question about one picture."""
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
    """The picture and the text of a chat request.

    Raises:
        ValueError: it is not one user message with one picture and text, or asks for what the model does not do.
    """
    if body.get("n", 1) != 1:
        raise ValueError(f"n: only 1 answer is given, got {body['n']!r}")
    if asked := [key for key in _UNSUPPORTED if body.get(key) and (key, body[key]) != ("top_p", 1)]:
        raise ValueError(f"{asked[0]}: not supported by this model")
    messages = body.get("messages")
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        raise ValueError("messages: this model answers one user message; send exactly one, with the picture in it")
    if messages[0].get("role") != "user":
        raise ValueError(f"messages: expected the role user, got {messages[0].get('role')!r}")
    parts = messages[0].get("content")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError("content: expected a list of one image_url part and one text part")
    images = [part.get("image_url") for part in parts if part.get("type") == "image_url"]
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    if len(images) + len(texts) != len(parts):
        raise ValueError("content: only the parts image_url and text are known")
    if len(images) != 1:
        raise ValueError(f"content: expected exactly one picture, got {len(images)}")
    prompt = "\n".join(text for text in texts if isinstance(text, str)).strip()
    if not prompt:
        raise ValueError("content: no text; ask something about the picture")
    place = images[0]
    return parse_image(place.get("url") if isinstance(place, dict) else place), prompt


def decoding_options(body: dict[str, Any]) -> dict[str, Any]:
    """How to decode: max_new_tokens, temperature and seed.

    Raises:
        ValueError: a value out of its range.
    """
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or 64
    temperature, seed = body.get("temperature") or 0, body.get("seed") or 0
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= 1024:
        raise ValueError(f"max_tokens: expected 1 to 1024, got {limit!r}")
    if not isinstance(temperature, int | float) or not 0 <= temperature <= 2:
        raise ValueError(f"temperature: expected 0 to 2, got {temperature!r}")
    if not isinstance(seed, int):
        raise ValueError(f"seed: expected a whole number, got {seed!r}")
    return {"max_new_tokens": limit, "temperature": float(temperature), "seed": seed}


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
