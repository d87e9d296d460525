"""The `preferences` source: rows that prefer one of two answers, in any of the common formats.

- TRL: `{"images": […], "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."}`; prompt and answers are
  texts or lists of messages, and both answers may start with the prompt instead;
- RLAIF-V: columns `question`, `chosen` and `rejected`; RLHF-V has them as JSON in a column `text`;
- Label Studio, JSON export of a pairwise comparison: `data` with the prompt and two answers, and `annotations` whose
  results select `left` or `right`; the majority of the annotators counts.
"""

from typing import Any

from components.ingest.conversation_formats import (
    image_values,
    message_text,
    only_value,
    parse_message_lists,
    to_messages,
    with_image_markers,
)
from components.ingest.json_files import parse_json
from components.ingest.record import malformed
from vlmflow.artifacts.dataset import IMAGE_MARKER
from vlmflow.errors import RecordError

PROMPT_COLUMNS = ("prompt", "question", "instruction")
ANSWER_COLUMNS = (("answer1", "answer2"), ("left", "right"), ("response1", "response2"), ("response_a", "response_b"),
           ("text1", "text2"))  # fmt: skip
PREFERENCE_SOURCES = ("human", "rule", "model")
LOCAL_FILE_PREFIXES = ("?d=", "/data/upload/")  # of file names in exports of Label Studio


def parse_preference(values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the images of a row in their original form, and its columns of the schema `preferences`.

    The columns include `source` (human, rule or model) if the row names it.

    Raises:
        RecordError: there is no image, no preference, or more than one question.
    """
    source: dict[str, Any] = {}
    if isinstance(values.get("annotations"), list) and isinstance(values.get("data"), dict):
        values, source = _from_label_studio(values["data"], values["annotations"]), {"source": "human"}
    elif values.get("source") in PREFERENCE_SOURCES:
        source = {"source": values["source"]}
    if "chosen" not in values and isinstance(values.get("text"), str):
        pair = parse_json(values["text"])
        if not isinstance(pair, dict):
            raise malformed(f"text: not a JSON object: {pair!r:.80}")
        values = {**values, **pair}
    values = parse_message_lists(values)
    prompt, inline_images = _parse_prompt(values)
    images = image_values(values, inline_images)
    (question,) = with_image_markers([{"role": "user", "content": prompt}], len(images))
    if not question["content"].strip():
        raise RecordError("no text", "the prompt is empty")
    chosen, rejected = (_parse_answer(values.get(name), name, prompt) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise RecordError("no preference", "chosen and rejected are equal")
    return images, {"prompt": question["content"], "chosen": chosen, "rejected": rejected, **source}


def _parse_prompt(values: dict[str, Any]) -> tuple[str, list[Any]]:
    prompt = only_value(values, PROMPT_COLUMNS)
    if prompt is None and isinstance(values.get("chosen"), list):
        prompt = values["chosen"][:-1]  # both answers begin with the whole conversation
    if not isinstance(prompt, list):
        return message_text(prompt), []
    messages, inline_images = to_messages(prompt)
    if [message["role"] for message in messages] != ["user"]:
        raise RecordError("several turns", f"the prompt has {len(messages)} messages; expected one user message")
    return messages[0]["content"], inline_images


def _parse_answer(given: Any, name: str, prompt: str) -> str:
    """Return the text of an answer: a text, an assistant's message, or the prompt and an assistant's message."""
    messages = to_messages(given)[0] if isinstance(given, list) and given else []
    answer = {"role": "assistant", "content": message_text(given)} if not messages else messages.pop()
    if answer["role"] != "assistant":
        raise RecordError("roles do not alternate", f"{name} ends with a message of the {answer['role']}")
    if messages and messages != [{"role": "user", "content": prompt}]:
        raise RecordError("several turns", f"{name} does not consist of the prompt and one answer")
    if IMAGE_MARKER in answer["content"]:
        raise RecordError("image markers", f"{IMAGE_MARKER} in the answer {name}")
    if not answer["content"].strip():
        raise RecordError("no text", f"{name} is empty")
    return answer["content"].strip()


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _from_label_studio(data: dict[str, Any], annotations: list[Any]) -> dict[str, Any]:
    """Convert a task of Label Studio to a row with `chosen` and `rejected`."""
    sides = next((names for names in ANSWER_COLUMNS if all(name in data for name in names)), None)
    if sides is None:
        raise malformed(
            f"no pair of answers among {', '.join(data)}; "
            f"supported: {', '.join('/'.join(names) for names in ANSWER_COLUMNS)}"
        )
    votes = [
        result["value"].get("selected")
        for annotation in annotations
        if isinstance(annotation, dict) and not annotation.get("was_cancelled")
        for result in _as_list(annotation.get("result"))
        if isinstance(result, dict) and result.get("type") == "pairwise" and isinstance(result.get("value"), dict)
    ]
    left, right = votes.count("left"), votes.count("right")
    if left == right:
        raise RecordError("no preference", f"{left} votes for the left answer, {right} for the right one")
    better, worse = sides if left > right else sides[::-1]
    image = data.get("image")
    if isinstance(image, str):
        for prefix in LOCAL_FILE_PREFIXES:
            image = image.rpartition(prefix)[2]
    return {**data, "image": image, "chosen": data[better], "rejected": data[worse]}
