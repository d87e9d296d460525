"""The `conversations` source: rows of talk about pictures, in any of the shapes that are around.

- LLaVA and ShareGPT: `conversations: [{"from": "human" | "gpt" | "system", "value": …}]`, `image` a name or a list;
- the other ShareGPT shape: `conversation: [{"human": …, "assistant": …}]`;
- OpenAI: `messages: [{"role": …, "content": …}]`, the content a text or a list of parts of type `text`, `image` or
  `image_url` (an address, a name, or a data URI).

The mark `<image>` says where a picture stands; the mark of an only picture is left out, because it leads anyway.
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
    """Return a row's pictures as it gives them, and its columns of the schema `conversations`.

    Raises:
        RecordError: there is no picture, the turns do not alternate, or the marks do not fit the pictures.
    """
    turns, shown = to_messages(_turns(values))
    images = image_values(values) or shown
    return images, {"messages": with_image_markers(validate_turns(turns), len(images)), "task": "vqa"}


def to_messages(turns: Any) -> tuple[list[dict[str, str]], list[Any]]:
    """Return messages as role and text, and the pictures that stand within their contents.

    Raises:
        RecordError: that is no list of messages.
    """
    messages, shown = [], []
    for turn in turns if isinstance(turns, list) else [turns]:
        if not isinstance(turn, dict):
            raise malformed(f"not a message: {turn!r:.80}")
        role = str(turn.get("role", turn.get("from")))
        if role not in ROLES:
            raise malformed(f"a message by {role!r}; known: {', '.join(ROLES)}")
        parts = turn.get("content", turn.get("value"))
        content = ""
        for part in parts if isinstance(parts, list) else [parts]:
            part = part if isinstance(part, dict) else {"type": "text", "text": part}
            kind = part.get("type")
            if kind in ("image", "image_url"):
                value = part.get(kind)
                value = value.get("url") if isinstance(value, dict) and "url" in value else value
                shown += [value] if value is not None else []
                content += IMAGE_MARKER
            elif kind == "text":
                content += text(part.get("text"))
            else:
                raise malformed(f"a part of type {kind!r}; known: text, image, image_url")
        messages.append({"role": ROLES[role], "content": content})
    return messages, shown


def image_values(values: dict[str, Any]) -> list[Any]:
    """Return what the row's columns give as pictures: a name or bytes, or a list of them."""
    found = next((values[name] for name in IMAGE_COLUMNS if values.get(name)), [])
    return found if isinstance(found, list) else [found]


def validate_turns(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages if user and assistant take turns and the assistant ends; a system message may lead.

    Raises:
        RecordError: they do not, or one of them is silent.
    """
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    roles = [message["role"] for message in turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise RecordError("not in turns", f"{', '.join(roles[:8]) or 'nobody'} speak")
    if silent := next((i for i, message in enumerate(turns) if not message["content"].strip()), None):
        raise RecordError("no text", f"message {silent + 1} is empty")
    return messages


def with_image_markers(messages: list[dict[str, str]], images: int) -> list[dict[str, str]]:
    """Return the messages with a mark for each of several pictures, or without one.

    Raises:
        RecordError: there is no picture, or another number of marks than of pictures.
    """
    marks = sum(message["content"].count(IMAGE_MARKER) for message in messages)
    if not images:
        raise RecordError("no picture", "a conversation about none")
    if marks not in (0, images):
        raise RecordError("placeholders", f"{marks} {IMAGE_MARKER} for {images} pictures")
    if images > 1:
        return messages
    return [{**message, "content": message["content"].replace(IMAGE_MARKER, "").strip()} for message in messages]


def _turns(values: dict[str, Any]) -> Any:
    for name in ("messages", "conversations"):
        if values.get(name):
            return values[name]
    rounds = values.get("conversation")
    if not (isinstance(rounds, list) and all(isinstance(turn, dict) for turn in rounds)):
        raise malformed(f"no messages, conversations or conversation among {', '.join(values) or 'no columns'}")
    names = ("system", "human", "assistant")
    return [{"role": name, "content": turn[name]} for turn in rounds for name in names if turn.get(name)]
