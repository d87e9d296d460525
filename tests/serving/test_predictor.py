"""A running predictor over HTTP, as its users call it."""

import asyncio
import base64
import json
import math
import os
import re
from pathlib import Path

import httpx
import pytest
from kserve.errors import InvalidInput
from openai import BadRequestError, NotFoundError, OpenAI

from vlmflow.errors import EXIT_CODE
from vlmflow.inference import generation
from vlmflow.serving.predictor import Predictor
from vlmflow.serving.request_limits import MAX_BODY
from vlmflow.serving.server import main

PREDICT = "/v1/models/vlm:predict"


def v1(client: httpx.Client, *instances: object, **body: object) -> httpx.Response:
    return client.post(PREDICT, json={"instances": list(instances), **body})


def chat(client: httpx.Client, url: str, **body: object) -> httpx.Response:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it"}]
    request = {"model": "vlm", "messages": [{"role": "user", "content": content}], **body}
    return client.post("/openai/v1/chat/completions", json=request)


def openai(client: httpx.Client) -> OpenAI:
    return OpenAI(base_url=f"{client.base_url}/openai/v1", api_key="none", max_retries=0)


def test_predictions_keep_the_order_of_mixed_instances(client: httpx.Client, encoded: str) -> None:
    image = {"b64": encoded}
    response = v1(
        client,
        {"image": image, "labels": ["red", "blue"]},
        {"image": image, "prompt": "what is it"},
        {"text": "a red circle"},
        {"image": f"data:image/png;base64,{encoded}", "prompt": "a red circle"},
        {"image": image},
    )
    assert response.status_code == 200, response.text
    classified, answered, text_embedded, other, image_embedded = response.json()["predictions"]
    assert sum(classified["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert classified["label"] == max(classified["probabilities"], key=classified["probabilities"].get)
    assert isinstance(answered["answer"], str) and isinstance(other["answer"], str)
    for vector in (text_embedded["embedding"], image_embedded["embedding"]):
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-4)
    alone = v1(client, {"image": image, "prompt": "what is it"}).json()["predictions"][0]
    assert alone == answered


def test_v1_v2_and_chat_give_the_same_answer(client: httpx.Client, encoded: str) -> None:
    v1_answer = v1(client, {"image": {"b64": encoded}, "prompt": "what is it"}).json()["predictions"][0]["answer"]
    inputs = [
        {"name": "image", "shape": [1], "datatype": "BYTES", "data": [encoded]},
        {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["what is it"]},
    ]
    (v2_answer,) = client.post("/v2/models/vlm/infer", json={"inputs": inputs}).json()["outputs"][0]["data"]
    chat_answer = chat(client, f"data:image/png;base64,{encoded}").json()["choices"][0]["message"]["content"]
    assert v1_answer == v2_answer == chat_answer != ""


def test_the_openai_client_chats_and_streams(client: httpx.Client, encoded: str) -> None:
    with openai(client) as service:
        assert [model.id for model in service.models.list()] == ["vlm"]
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
            {"type": "text", "text": "what is it"},
        ]
        request = {"model": "vlm", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
        answer = service.chat.completions.create(**request).choices[0].message.content
        chunks = [
            chunk.choices[0].delta.content or "" for chunk in service.chat.completions.create(**request, stream=True)
        ]
        assert "".join(chunks) == answer
        with pytest.raises(NotFoundError, match="this endpoint serves 'vlm'"):
            service.chat.completions.create(**{**request, "model": "gpt"})
        with pytest.raises(BadRequestError, match="addresses are not fetched"):
            content[0]["image_url"] = {"url": "http://169.254.169.254/latest/meta-data"}
            service.chat.completions.create(**request)


def test_sampled_answers_depend_only_on_the_seed(client: httpx.Client, encoded: str) -> None:
    def ask(seed: int) -> str:
        response = chat(client, f"data:image/png;base64,{encoded}", temperature=1.5, seed=seed)
        return response.json()["choices"][0]["message"]["content"]

    assert ask(1) == ask(1) and len({ask(seed) for seed in range(4)}) > 1


NOT_AN_IMAGE = base64.b64encode(b"plain text").decode()


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({"image": {"b64": "%%%"}, "prompt": "x"}, "not valid base64"),
        ({"image": {"b64": NOT_AN_IMAGE}, "prompt": "x"}, "not an image"),
        ({"image": {"b64": ""}, "prompt": "x"}, "image: missing"),
        ({"prompt": "x"}, "image: missing"),
        ({"image": "https://example.com/a.png", "prompt": "x"}, "addresses are not fetched"),
        ({"image": "FILE:///etc/passwd", "prompt": "x"}, "addresses are not fetched"),
        ({"image": {"path": "/etc/passwd"}, "prompt": "x"}, "expected {"),
        ({"image": "PNG", "prompt": ""}, "prompt: expected text"),
        ({"image": "PNG", "prompt": 3}, "prompt: expected text"),
        ({"image": "PNG", "prompt": "<image> what"}, "control token"),
        ({"image": "PNG", "prompt": "word " * 400}, "exceed the model's limit of"),
        ({"image": "PNG", "labels": ["one"]}, "at least two"),
        ({"image": "PNG", "labels": ["one", "one"]}, "at least two different"),
        ({"image": "PNG", "labels": "one"}, "at least two"),
        ({"image": "PNG", "labels": [str(number) for number in range(1001)]}, "at most 1000"),
        ({"image": "PNG", "labels": ["one", "o" * 201]}, "at most 200"),
        ({"image": "PNG", "prompt": "x" * 20_001}, "at most 20000"),
        ({"image": "PNG", "text": "x" * 20_001}, "at most 20000"),
        ({"image": "PNG", "prompt": "where is <box>1,1,99,9</box>"}, "outside the image of 80×60 pixels"),
        ({"image": "PNG", "prompt": f"<box>{'9' * 400},1,2,3</box>"}, "outside the image"),
        ({"image": "PNG", "prompt": "x", "labels": ["a", "b"]}, "has prompt and labels"),
        ({"image": "PNG", "question": "x"}, "'question' is unknown"),
    ],
)
def test_an_invalid_instance_gets_a_400_with_the_reason(
    client: httpx.Client, encoded: str, instance: dict[str, object], message: str
) -> None:
    if instance.get("image") == "PNG":
        instance = {**instance, "image": {"b64": encoded}}
    response = v1(client, instance)
    assert response.status_code == 400 and message in response.json()["error"]


def test_a_damaged_image_gets_a_400(client: httpx.Client, encoded: str) -> None:
    half = base64.b64decode(encoded)[:60]
    response = v1(client, {"image": {"b64": base64.b64encode(half).decode()}, "prompt": "x"})
    assert response.status_code == 400 and "damaged" in response.json()["error"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"instances": 3}', b'{"instances": []}', b'{"instances": ["a"]}']
    + [b'{"instances": [{}], "parameters": [1]}', b'{"instances": [{}], "max_new_tokens": 3}'],
)
def test_an_invalid_body_gets_a_400(client: httpx.Client, body: bytes) -> None:
    assert client.post(PREDICT, content=body, headers={"content-type": "application/json"}).status_code == 400


def test_json_is_read_whatever_its_content_type(client: httpx.Client, encoded: str) -> None:
    body = json.dumps({"instances": [{"image": encoded}]})
    for kind in ("application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded"):
        assert client.post(PREDICT, content=body, headers={"content-type": kind}).status_code == 200


def test_a_request_that_is_rejected_leaves_one_line_in_the_log(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        v1(client, {"prompt": "x"})
    lines = [record for record in caplog.records if "image: missing" in record.getMessage()]
    assert len(lines) == 1 and not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "exactly one"),
        ({"messages": [{"role": "user", "content": "what is it"}]}, "expected a list"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "exactly one image, got 0"),
        ({"messages": [{"role": "system", "content": "be brief"}]}, "expected the role user"),
        ({"n": 2}, "only 1 answer"),
        ({"stop": ["a"]}, "stop: ['a'] is not supported"),
        ({"max_tokens": -1}, "1 to 1024"),
        ({"max_tokens": 0}, "1 to 1024"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"seed": 2**64}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"top_k": 3}, "top_k: 3 is not supported"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_an_invalid_chat_request_gets_an_openai_error(
    client: httpx.Client, encoded: str, change: dict[str, object], message: str
) -> None:
    response = chat(client, f"data:image/png;base64,{encoded}", **change)
    error = response.json()["error"]
    assert response.status_code == 400 and message in error["message"] and error["type"] == "invalid_request_error"


def test_a_chat_body_that_is_not_json_gets_a_400(client: httpx.Client) -> None:
    assert client.post("/openai/v1/chat/completions", content=b"{").status_code == 400


def test_options_without_an_effect_are_accepted(client: httpx.Client, encoded: str) -> None:
    given = {"n": None, "stop": None, "top_p": 1.0, "response_format": {"type": "text"}, "user": "me", "tools": []}
    response = chat(client, f"data:image/png;base64,{encoded}", **given)
    assert response.status_code == 200, response.text


def test_finish_reason_and_usage_are_true(client: httpx.Client, predictor: Predictor, encoded: str) -> None:
    cut = chat(client, f"data:image/png;base64,{encoded}", max_tokens=3).json()
    assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 3
    prompt = generation.chat_prompt(predictor.loaded.processor, "what is it")
    tokens = len(predictor.loaded.tokenizer(prompt)["input_ids"]) - 1 + predictor.loaded.processor.image_tokens
    assert cut["usage"]["prompt_tokens"] == tokens and cut["usage"]["total_tokens"] == tokens + 3
    config, own = predictor.loaded.model.generation_config, predictor.loaded.model.generation_config.eos_token_id
    config.eos_token_id = list(range(predictor.loaded.model.config.vocab_size))  # any token ends an answer
    try:
        ended = chat(client, f"data:image/png;base64,{encoded}", max_tokens=3).json()
    finally:
        config.eos_token_id = own
    assert (ended["choices"][0]["finish_reason"], ended["choices"][0]["message"]["content"]) == ("stop", "")
    assert ended["usage"]["completion_tokens"] == 1


def test_samples_without_a_seed_differ(client: httpx.Client, encoded: str) -> None:
    chat(client, f"data:image/png;base64,{encoded}", temperature=1.5, seed=1)
    answers = {
        chat(client, f"data:image/png;base64,{encoded}", temperature=1.5).json()["choices"][0]["message"]["content"]
        for _ in range(3)
    }
    assert len(answers) == 3


def test_requests_are_counted_in_the_metrics(client: httpx.Client, encoded: str) -> None:
    def count(line: str) -> float:
        found = re.search(re.escape(line) + r" (\S+)", client.get("/metrics").text)
        return float(found[1]) if found else 0.0

    lines = [f'vlmflow_requests_total{{protocol="openai",status="{status}"}}' for status in (200, 400)]
    lines.append('request_predict_seconds_count{model_name="vlm"}')
    before = [count(line) for line in lines]
    chat(client, f"data:image/png;base64,{encoded}", max_tokens=1)
    chat(client, f"data:image/png;base64,{encoded}", max_tokens=0)
    assert [count(line) for line in lines] == [value + 1 for value in before]


def test_an_unknown_model_gets_a_404(client: httpx.Client) -> None:
    assert client.post("/v1/models/other:predict", json={"instances": [{}]}).status_code == 404


def test_an_oversized_body_gets_a_413_with_or_without_its_length(client: httpx.Client) -> None:
    blob = os.urandom(1024) * (MAX_BODY // 1024 + 1)
    assert client.post(PREDICT, content=blob).status_code == 413
    chunks = (blob[start : start + 2**20] for start in range(0, len(blob), 2**20))
    response = client.post("/openai/v1/chat/completions", content=chunks)
    assert response.status_code == 413 and response.json()["error"]["type"] == "invalid_request_error"
    assert client.get("/v2/health/live").status_code == 200


def test_a_missing_ability_is_rejected_with_the_abilities(embedding_model: Path, encoded: str) -> None:
    predictor = Predictor("embedder", embedding_model)
    predictor.load()
    with pytest.raises(InvalidInput, match="this model cannot chat; it can classify, embed"):
        asyncio.run(predictor.predict({"instances": [{"image": {"b64": encoded}, "prompt": "what is it"}]}))


def test_a_folder_without_a_model_fails_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_dir", str(tmp_path)]) == EXIT_CODE
    assert capsys.readouterr().err.count("\n") == 1
