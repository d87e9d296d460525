"""The `conversations` source: conversations about images, in any of the common formats.

- LLaVA and ShareGPT:
  `{"image": "0.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", …}]}`;
  the roles are `human`, `gpt` and `system`, and `image` is a name or a list;
- the other ShareGPT format: `{"image": …, "conversation": [{"human": "What is it?", "assistant": "A cat."}]}`;
- OpenAI: `{"messages": [{"role": "user", "content": …}]}`; the content is a text or a list of parts of type `text`,
  `image` or `image_url` (a URL, a file name or a data URI).

The marker `<image>` is the position of an image in the text of a user; elsewhere it is refused, because a model would
take it for an image. The marker of a single image is removed, because the image comes first anyway.
"""

import re
from typing import Any

from components.ingest.columns import text
from components.ingest.json_files import parse_json
from components.ingest.record import malformed
from vlmflow.artifacts.dataset import IMAGE_MARKER
from vlmflow.errors import RecordError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
         "system": "system"}  # fmt: skip
_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(role|from|content|value|system|human)"\s*:')
IMAGE_COLUMNS = ("images", "image")


def parse_conversation(values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the images of a row in their original form, and its columns of the schema `conversations`.

    Raises:
        RecordError: there is no image, the turns do not alternate, or the markers do not match the images.
    """
    turns, inline_images = to_messages(_turns(parse_message_lists(values)))
    images = image_values(values, inline_images)
    return images, {"messages": with_image_markers(validate_turns(turns), len(images)), "task": "vqa"}


def parse_message_lists(values: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its lists of messages, which may be written as JSON text (in CSV and parquet).

    Raises:
        RecordError: one is not JSON.
    """
    return {
        name: parse_json(value) if isinstance(value, str) and _MESSAGES.match(value) else value
        for name, value in values.items()
    }


def to_messages(turns: Any) -> tuple[list[dict[str, str]], list[Any]]:
    """Return the messages as role and text, and the images inside their contents.

    Raises:
        RecordError: `turns` is not a list of messages, or an answer contains the image marker.
    """
    messages, inline_images = [], []
    for turn in turns if isinstance(turns, list) else [turns]:
        if not isinstance(turn, dict):
            raise malformed(f"not a message: {turn!r:.80}")
        name = only_value(turn, ("role", "from"))
        role = ROLES.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            raise malformed(f"unknown role {name!r:.80}; use one of {', '.join(ROLES)}")
        parts = only_value(turn, ("content", "value"))
        content = ""
        for part in parts if isinstance(parts, list) else [parts]:
            written, images = _read_part(part, role)
            content += written
            inline_images += images
        messages.append({"role": role, "content": content})
    return messages, inline_images


def _read_part(part: Any, role: str) -> tuple[str, list[Any]]:
    """Return the text of a part of a message, and its image if it has one."""
    kind = part.get("type") if isinstance(part, dict) else "text"
    if kind == "text":
        written = message_text(part.get("text") if isinstance(part, dict) else part)
        if role != "user" and IMAGE_MARKER in written:
            raise RecordError("image markers", f"{IMAGE_MARKER} in a message that is not of the user")
        return written, []
    if kind not in ("image", "image_url"):
        raise malformed(f"unknown part type {kind!r:.80}; use text, image or image_url")
    if role != "user":
        raise RecordError("image markers", "an image in a message that is not of the user")
    value = part.get(kind)
    value = value.get("url") if isinstance(value, dict) and "url" in value else value
    return IMAGE_MARKER, [] if value is None else [value]


def message_text(value: Any) -> str:
    """Return a message or an answer; null is "".

    Raises:
        RecordError: it is not a text. A number would have to be written in one of several ways.
    """
    if value is not None and not isinstance(value, str):
        raise RecordError("not text", f"{value!r:.80}")
    return text(value, markers=True)


def only_value(values: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Return the value under the one of `names` that is not null; None if all are.

    Raises:
        RecordError: two of them have different values.
    """
    found = {name: values[name] for name in names if values.get(name) is not None}
    first, *others = found or [""]
    if other := next((name for name in others if found[name] != found[first]), None):
        raise malformed(f"two values, in {first} and in {other}; remove one")
    return found.get(first)


def image_values(values: dict[str, Any], inline_images: list[Any]) -> list[Any]:
    """Return the images of a row in their original form: of the image column, or inside the messages.

    Raises:
        RecordError: there are images in both.
    """
    columns = {name: _as_list(values.get(name)) for name in IMAGE_COLUMNS}
    images = only_value({name: images or None for name, images in columns.items()}, IMAGE_COLUMNS) or []
    if images and inline_images:
        raise RecordError("several images", "in the column of images, and inside the messages")
    return images or inline_images


def validate_turns(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages if user and assistant alternate and the assistant is last; a system message may come first.

    Raises:
        RecordError: the roles do not alternate, or a message is empty.
    """
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    roles = [message["role"] for message in turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise RecordError("roles do not alternate", f"roles are {', '.join(roles[:8]) or 'missing'}")
    if empty := next((i for i, message in enumerate(turns) if not message["content"].strip()), None):
        raise RecordError("no text", f"message {empty + 1} is empty")
    return messages


def with_image_markers(messages: list[dict[str, str]], images: int) -> list[dict[str, str]]:
    """Return the messages with their markers if there are several images, without the marker for a single image.

    Raises:
        RecordError: there is no image, or the numbers of markers and images differ.
    """
    markers = sum(message["content"].count(IMAGE_MARKER) for message in messages)
    if not images:
        raise RecordError("no image", "the row has no image")
    if markers not in (0, images):
        raise RecordError("image markers", f"{markers} {IMAGE_MARKER} markers for {images} images")
    if images > 1:
        return messages
    return [
        {**message, "content": message["content"].replace(IMAGE_MARKER, "").strip()}
        if IMAGE_MARKER in message["content"]
        else message
        for message in messages
    ]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value in (None, "") else [value]


def _turns(values: dict[str, Any]) -> Any:
    if turns := only_value(values, ("messages", "conversations")):
        return turns
    rounds = values.get("conversation")
    if not (isinstance(rounds, list) and all(isinstance(turn, dict) for turn in rounds)):
        raise malformed(f"no column messages, conversations or conversation among {', '.join(values) or 'no columns'}")
    names = ("system", "human", "assistant")
    return [{"role": name, "content": turn[name]} for turn in rounds for name in names if turn.get(name)]
