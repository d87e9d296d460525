"""Instructions that several steps share, so that training and inference use the same words."""

from typing import Any

DESCRIBE_IMAGE = "Describe the picture."
NAME_OBJECTS = "Name the objects."
CLASS_TEMPLATES = ("a {}", "there is a {}", "a photo with a {}")  # of the name of a zero-shot class


def question_turns(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The (question, answer) turns of a conversation, which are asked independently; a system message precedes each."""
    system = "".join(f"{message['content']}\n" for message in messages if message["role"] == "system")
    contents = [message["content"] for message in messages if message["role"] != "system"]
    return [(system + question, answer) for question, answer in zip(contents[::2], contents[1::2], strict=True)]
