"""OpenAI's chat protocol: `/openai/v1/chat/completions` and `/openai/v1/models`.

A request is one user message with one image, as an `image_url` with a data URI, and its text. Decoding is greedy unless
`temperature` is set; then the answer is sampled, with `seed` if there is one. A stream sends the whole answer in one
chunk. An option that would change the answer and is not implemented is rejected.
"""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady
from kserve.metrics import PREDICT_HIST_TIME, get_labels

from vlmflow.serving.predictor import Predictor

router = APIRouter(prefix="/openai/v1")

_IMPLEMENTED = ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "stream")
# Options that are accepted with a value that changes nothing. Null counts as absent, as in OpenAI's own API.
_NO_EFFECT: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "stop": ([],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "stream_options": ({"include_usage": False}, {}),
    "store": (False,),
}
_LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier")  # not about the answer


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
    """Answer one question about one image.

    Raises:
        InvalidInput: the request is malformed, or uses an option that is not implemented.
        ModelNotFound: another model is served.
        ModelNotReady: the model cannot answer.
    """
    predictor: Predictor = request.app.state.predictor
    body = orjson.loads(await request.body())
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    if body.get("model") != predictor.name:
        missing = ModelNotFound(body.get("model"))
        missing.reason = f"the model {body.get('model')!r:.80} does not exist; this endpoint serves {predictor.name!r}"
        raise missing
    if not await predictor.healthy():
        raise ModelNotReady(predictor.name)
    try:
        question, options = parse_question(body), parse_options(body)
        with PREDICT_HIST_TIME.labels(**get_labels(predictor.name)).time():
            (answer,) = await predictor.answer([question], **options)
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": predictor.name}
    reason = "stop" if answer.finished else "length"
    if body.get("stream"):
        return StreamingResponse(_stream(head, answer.text, reason), media_type="text/event-stream")
    choice = {"index": 0, "message": {"role": "assistant", "content": answer.text}, "finish_reason": reason}
    usage = {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})


def parse_question(body: dict[str, Any]) -> tuple[Any, str]:
    """Return the encoded image and the text of a chat request.

    Raises:
        ValueError: the request is not one user message with one image and text.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        raise ValueError("messages: expected exactly one user message, with the image in it")
    if messages[0].get("role") != "user":
        raise ValueError(f"messages: expected the role user, got {messages[0].get('role')!r:.80}")
    _reject_unknown(messages[0], "messages", ("role", "content", "name"))
    parts = messages[0].get("content")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError("content: expected a list of one image_url part and one text part")
    images, texts = [], []
    for part in parts:
        if part.get("type") == "image_url":
            _reject_unknown(part, "content", ("type", "image_url"))
            images.append(_parse_image_url(part.get("image_url")))
        elif part.get("type") == "text":
            _reject_unknown(part, "content", ("type", "text"))
            texts.append(part.get("text"))
        else:
            raise ValueError("content: only image_url and text parts are supported")
    if len(images) != 1:
        raise ValueError(f"content: expected exactly one image, got {len(images)}")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("content: the text of a text part must be a string")
    prompt = "\n".join(texts).strip()
    if not prompt:
        raise ValueError("content: the text is missing; add a text part with a question about the image")
    return images[0], prompt


def parse_options(body: dict[str, Any]) -> dict[str, Any]:
    """Return max_new_tokens, temperature and seed of a chat request.

    Raises:
        ValueError: a value is out of range, or an option is not implemented.
    """
    given = {key: value for key, value in body.items() if value is not None}
    for key, value in given.items():
        if key not in (*_IMPLEMENTED, *_LABELS) and not any(_same(value, each) for each in _NO_EFFECT.get(key, ())):
            if key == "n":
                raise ValueError(f"n: only 1 answer is supported, got {value!r:.80}")
            raise ValueError(f"{key:.80}: {value!r:.80} is not supported by this endpoint")
    if not isinstance(given.get("stream", False), bool):
        raise ValueError(f"stream: expected true or false, got {given['stream']!r:.80}")
    from vlmflow.serving.answering import MAX_NEW_TOKENS

    limits = [given[key] for key in ("max_completion_tokens", "max_tokens") if key in given]
    if any(isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 1024 for limit in limits):
        raise ValueError(f"max_tokens: expected 1 to 1024, got {limits[0]!r:.80}")
    temperature, seed = given.get("temperature", 0), given.get("seed")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature <= 2:
        raise ValueError(f"temperature: expected 0 to 2, got {temperature!r:.80}")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63):
        raise ValueError(f"seed: expected a whole number of 64 bits, got {seed!r:.80}")
    return {
        "max_new_tokens": min(limits, default=MAX_NEW_TOKENS),
        "temperature": float(temperature),
        "seed": seed,
    }


def _same(value: Any, other: Any) -> bool:
    """Whether two JSON values are equal; `true` is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _parse_image_url(value: Any) -> Any:
    """Return the URL of an image part. Raises ValueError if it has options that are not implemented."""
    if not isinstance(value, dict):
        return value
    _reject_unknown(value, "image_url", ("url", "detail"))
    if value.get("detail") not in (None, "auto"):
        raise ValueError(f"image_url: detail {value['detail']!r:.80} is not supported; leave it out")
    return value.get("url")


def _reject_unknown(value: dict[str, Any], name: str, known: tuple[str, ...]) -> None:
    if unknown := sorted(key for key in value if key not in known and value[key] is not None):
        raise ValueError(f"{name}: {unknown[0]!r:.80} is not supported")


def _stream(head: dict[str, Any], answer: str, reason: str) -> Iterator[str]:
    deltas = [({"role": "assistant", "content": ""}, None), ({"content": answer}, None), ({}, reason)]
    for delta, finish_reason in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"
