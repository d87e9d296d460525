"""The `preferences` source: rows that say which of two answers is better, in any of the shapes that are around.

- TRL: `prompt`, `chosen` and `rejected`, texts or messages (the prompt may lead both answers instead), `images`;
- RLHF-V: `text` as JSON with `question`, `chosen` and `rejected`; RLAIF-V has them as columns;
- Label Studio's JSON export of a pairwise comparison: `data` with the prompt and two answers, and `annotations`
  whose results select `left` or `right`; of several annotators the majority counts.
"""

import json
from typing import Any

from components.ingest.columns import text
from components.ingest.conversation_formats import IMAGE_MARKER, image_values, to_messages, with_image_markers
from components.ingest.record import malformed
from vlmflow.errors import RecordError

PROMPT_COLUMNS = ("prompt", "question", "instruction")
ANSWER_COLUMNS = (("answer1", "answer2"), ("left", "right"), ("response1", "response2"), ("response_a", "response_b"),
           ("text1", "text2"))  # fmt: skip
PREFERENCE_SOURCES = ("human", "rule", "model")
LOCAL_FILE_PREFIXES = ("?d=", "/data/upload/")  # how Label Studio writes a file's name


def parse_preference(values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return a row's pictures as it gives them, and its columns of the schema `preferences`.

    `source` is among them where the row says who judged.

    Raises:
        RecordError: there is no picture, no verdict, or more than one question.
    """
    judged: dict[str, Any] = {}
    if isinstance(values.get("annotations"), list) and isinstance(values.get("data"), dict):
        values, judged = _from_label_studio(values["data"], values["annotations"]), {"source": "human"}
    elif values.get("source") in PREFERENCE_SOURCES:
        judged = {"source": values["source"]}
    if "chosen" not in values and isinstance(values.get("text"), str):
        try:
            values = {**values, **json.loads(values["text"])}
        except (ValueError, TypeError) as error:
            raise malformed(f"text: not a JSON object: {error}") from None
    prompt, shown = _parse_prompt(values)
    images = image_values(values) or shown
    (question,) = with_image_markers([{"role": "user", "content": prompt}], len(images))
    if not question["content"].strip():
        raise RecordError("no text", "the prompt is empty")
    chosen, rejected = (_parse_answer(values.get(name), name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise RecordError("no verdict", "the chosen answer is the rejected one")
    return images, {"prompt": question["content"], "chosen": chosen, "rejected": rejected, **judged}


def _parse_prompt(values: dict[str, Any]) -> tuple[str, list[Any]]:
    given = next((values[name] for name in PROMPT_COLUMNS if values.get(name)), None)
    if given is None and isinstance(values.get("chosen"), list):
        given = values["chosen"][:-1]  # the answers hold the whole conversation
    if not isinstance(given, list):
        return text(given), []
    messages, shown = to_messages(given)
    if [message["role"] for message in messages] != ["user"]:
        raise RecordError("several turns", f"the prompt has {len(messages)} messages; one of the user's is expected")
    return messages[0]["content"], shown


def _parse_answer(given: Any, name: str) -> str:
    answer = to_messages(given)[0][-1]["content"] if isinstance(given, list) and given else text(given)
    if not answer.strip():
        raise RecordError("no text", f"{name} is empty")
    return answer.replace(IMAGE_MARKER, "").strip()


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _from_label_studio(data: dict[str, Any], annotations: list[Any]) -> dict[str, Any]:
    """A task of Label Studio's as a row with `chosen` and `rejected`."""
    sides = next((names for names in ANSWER_COLUMNS if all(name in data for name in names)), None)
    if sides is None:
        raise malformed(
            f"no two answers among {', '.join(data)}; known: {', '.join('/'.join(names) for names in ANSWER_COLUMNS)}"
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
        raise RecordError("no verdict", f"{left} for the left answer, {right} for the right one")
    better, worse = sides if left > right else sides[::-1]
    image = data.get("image")
    if isinstance(image, str):
        for mark in LOCAL_FILE_PREFIXES:
            image = image.rpartition(mark)[2]
    return {**data, "image": image, "chosen": data[better], "rejected": data[worse]}
