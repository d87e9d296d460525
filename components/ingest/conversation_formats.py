"""The `conversations` source: conversations about images, in any of the common formats.

- LLaVA and ShareGPT:
  `{"image": "0.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", …}]}`;
  the roles are `human`, `gpt` and `system`, and `image` is a name or a list;
- the other ShareGPT format: `{"image": …, "conversation": [{"human": "What is it?", "assistant": "A cat."}]}`;
- OpenAI: `{"messages": [{"role": "user", "content": …}]}`; the content is a text or a list of parts of type `text`,
  `image` or `image_url` (a URL, a file name or a data URI).

The marker `<image>` is the position of an image in the text. The marker of a single image is removed, because the image
comes first anyway.
"""

from typing import Any

from components.ingest.columns import text
from components.ingest.record import malformed
from vlmflow.errors import RecordError

IMAGE_MARKER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
         "system": "system"}  # fmt: skip
IMAGE_COLUMNS = ("images", "image")


def parse_conversation(values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the images of a row in their original form, and its columns of the schema `conversations`.

    Raises:
        RecordError: there is no image, the turns do not alternate, or the markers do not match the images.
    """
    turns, inline_images = to_messages(_turns(values))
    images = image_values(values) or inline_images
    return images, {"messages": with_image_markers(validate_turns(turns), len(images)), "task": "vqa"}


def to_messages(turns: Any) -> tuple[list[dict[str, str]], list[Any]]:
    """Return the messages as role and text, and the images inside their contents.

    Raises:
        RecordError: `turns` is not a list of messages.
    """
    messages, inline_images = [], []
    for turn in turns if isinstance(turns, list) else [turns]:
        if not isinstance(turn, dict):
            raise malformed(f"not a message: {turn!r:.80}")
        role = str(turn.get("role", turn.get("from")))
        if role not in ROLES:
            raise malformed(f"unknown role {role!r}; use one of {', '.join(ROLES)}")
        parts = turn.get("content", turn.get("value"))
        content = ""
        for part in parts if isinstance(parts, list) else [parts]:
            part = part if isinstance(part, dict) else {"type": "text", "text": part}
            kind = part.get("type")
            if kind in ("image", "image_url"):
                value = part.get(kind)
                value = value.get("url") if isinstance(value, dict) and "url" in value else value
                inline_images += [value] if value is not None else []
                content += IMAGE_MARKER
            elif kind == "text":
                content += text(part.get("text"))
            else:
                raise malformed(f"unknown part type {kind!r}; use text, image or image_url")
        messages.append({"role": ROLES[role], "content": content})
    return messages, inline_images


def image_values(values: dict[str, Any]) -> list[Any]:
    """Return the images of the image column, in their original form: file names or bytes."""
    images = next((values[name] for name in IMAGE_COLUMNS if values.get(name)), [])
    return images if isinstance(images, list) else [images]


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
    return [{**message, "content": message["content"].replace(IMAGE_MARKER, "").strip()} for message in messages]


def _turns(values: dict[str, Any]) -> Any:
    for name in ("messages", "conversations"):
        if values.get(name):
            return values[name]
    rounds = values.get("conversation")
    if not (isinstance(rounds, list) and all(isinstance(turn, dict) for turn in rounds)):
        raise malformed(f"no column messages, conversations or conversation among {', '.join(values) or 'no columns'}")
    names = ("system", "human", "assistant")
    return [{"role": name, "content": turn[name]} for turn in rounds for name in names if turn.get(name)]
