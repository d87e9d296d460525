"""The running predictor, asked over HTTP as its users ask it."""

import asyncio
import base64
import math
import os
from pathlib import Path

import httpx
import pytest
from kserve.errors import InvalidInput
from openai import BadRequestError, NotFoundError, OpenAI

from vlmflow.errors import EXIT_CODE
from vlmflow.serving.body_limit import MAX_BODY
from vlmflow.serving.predictor import Predictor, main

PREDICT = "/v1/models/vlm:predict"


def v1(client: httpx.Client, *instances: object, **body: object) -> httpx.Response:
    return client.post(PREDICT, json={"instances": list(instances), **body})


def chat(client: httpx.Client, url: str, **body: object) -> httpx.Response:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it"}]
    request = {"model": "vlm", "messages": [{"role": "user", "content": content}], **body}
    return client.post("/openai/v1/chat/completions", json=request)


def openai(client: httpx.Client) -> OpenAI:
    return OpenAI(base_url=f"{client.base_url}/openai/v1", api_key="none", max_retries=0)


def test_every_kind_of_instance_in_one_request_keeps_its_place(client: httpx.Client, encoded: str) -> None:
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
    classified, answered, embedded, other, seen = response.json()["predictions"]
    assert sum(classified["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert classified["label"] == max(classified["probabilities"], key=classified["probabilities"].get)
    assert isinstance(answered["answer"], str) and isinstance(other["answer"], str)
    for vector in (embedded["embedding"], seen["embedding"]):
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-4)
    alone = v1(client, {"image": image, "prompt": "what is it"}).json()["predictions"][0]
    assert alone == answered


def test_the_three_protocols_give_one_answer(client: httpx.Client, encoded: str) -> None:
    first = v1(client, {"image": {"b64": encoded}, "prompt": "what is it"}).json()["predictions"][0]["answer"]
    inputs = [
        {"name": "image", "shape": [1], "datatype": "BYTES", "data": [encoded]},
        {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["what is it"]},
    ]
    second = client.post("/v2/models/vlm/infer", json={"inputs": inputs}).json()["outputs"][0]["data"]
    third = chat(client, f"data:image/png;base64,{encoded}").json()["choices"][0]["message"]["content"]
    assert [first] == second and first == third and first


def test_the_openai_client_works(client: httpx.Client, encoded: str) -> None:
    with openai(client) as service:
        assert [model.id for model in service.models.list()] == ["vlm"]
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
            {"type": "text", "text": "what is it"},
        ]
        question = {"model": "vlm", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
        whole = service.chat.completions.create(**question).choices[0].message.content
        pieces = [
            chunk.choices[0].delta.content or "" for chunk in service.chat.completions.create(**question, stream=True)
        ]
        assert "".join(pieces) == whole
        with pytest.raises(NotFoundError, match="this endpoint serves 'vlm'"):
            service.chat.completions.create(**{**question, "model": "gpt"})
        with pytest.raises(BadRequestError, match="addresses are not fetched"):
            content[0]["image_url"] = {"url": "http://169.254.169.254/latest/meta-data"}
            service.chat.completions.create(**question)


def test_a_seed_repeats_a_sampled_answer(client: httpx.Client, encoded: str) -> None:
    def ask(seed: int) -> str:
        response = chat(client, f"data:image/png;base64,{encoded}", temperature=1.5, seed=seed)
        return response.json()["choices"][0]["message"]["content"]

    assert ask(1) == ask(1) and len({ask(seed) for seed in range(4)}) > 1


PICTURE = base64.b64encode(b"not a picture at all").decode()


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({"image": {"b64": "%%%"}, "prompt": "x"}, "not valid base64"),
        ({"image": {"b64": PICTURE}, "prompt": "x"}, "are not a picture"),
        ({"image": {"b64": ""}, "prompt": "x"}, "no picture"),
        ({"prompt": "x"}, "no picture"),
        ({"image": "https://example.com/a.png", "prompt": "x"}, "addresses are not fetched"),
        ({"image": "FILE:///etc/passwd", "prompt": "x"}, "addresses are not fetched"),
        ({"image": {"path": "/etc/passwd"}, "prompt": "x"}, "expected {"),
        ({"image": "PNG", "prompt": ""}, "prompt: expected text"),
        ({"image": "PNG", "prompt": 3}, "prompt: expected text"),
        ({"image": "PNG", "prompt": "<image> what"}, "control token"),
        ({"image": "PNG", "prompt": "word " * 400}, "the model has room for"),
        ({"image": "PNG", "labels": ["one"]}, "at least two"),
        ({"image": "PNG", "question": "x"}, "'question' is unknown"),
    ],
)
def test_a_wrong_instance_is_a_400_that_says_why(
    client: httpx.Client, encoded: str, instance: dict[str, object], message: str
) -> None:
    if instance.get("image") == "PNG":
        instance = {**instance, "image": {"b64": encoded}}
    response = v1(client, instance)
    assert response.status_code == 400 and message in response.json()["error"]


def test_a_broken_picture_is_a_400(client: httpx.Client, encoded: str) -> None:
    half = base64.b64decode(encoded)[:60]
    response = v1(client, {"image": {"b64": base64.b64encode(half).decode()}, "prompt": "x"})
    assert response.status_code == 400 and "broken" in response.json()["error"]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"instances": 3}', b'{"instances": []}', b'{"instances": ["a"]}'])
def test_a_wrong_body_is_a_400(client: httpx.Client, body: bytes) -> None:
    assert client.post(PREDICT, content=body, headers={"content-type": "application/json"}).status_code == 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "exactly one"),
        ({"messages": [{"role": "user", "content": "what is it"}]}, "expected a list"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "exactly one picture, got 0"),
        ({"messages": [{"role": "system", "content": "be brief"}]}, "expected the role user"),
        ({"n": 2}, "only 1 answer"),
        ({"stop": ["a"]}, "stop: not supported"),
        ({"max_tokens": -1}, "1 to 1024"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_a_wrong_chat_is_a_400_in_openais_form(
    client: httpx.Client, encoded: str, change: dict[str, object], message: str
) -> None:
    response = chat(client, f"data:image/png;base64,{encoded}", **change)
    error = response.json()["error"]
    assert response.status_code == 400 and message in error["message"] and error["type"] == "invalid_request_error"


def test_chat_that_is_not_json_is_a_400(client: httpx.Client) -> None:
    assert client.post("/openai/v1/chat/completions", content=b"{").status_code == 400


def test_an_unknown_model_is_a_404(client: httpx.Client) -> None:
    assert client.post("/v1/models/other:predict", json={"instances": [{}]}).status_code == 404


def test_too_large_a_body_is_a_413_announced_or_not(client: httpx.Client) -> None:
    blob = os.urandom(1024) * (MAX_BODY // 1024 + 1)
    assert client.post(PREDICT, content=blob).status_code == 413
    pieces = (blob[start : start + 2**20] for start in range(0, len(blob), 2**20))
    assert client.post(PREDICT, content=pieces).status_code == 413
    assert client.get("/v2/health/live").status_code == 200


def test_what_the_model_cannot_do_is_refused_with_what_it_can(embedder: Path, encoded: str) -> None:
    predictor = Predictor("eye", embedder)
    predictor.load()
    with pytest.raises(InvalidInput, match="this model cannot chat; it can classify, embed"):
        asyncio.run(predictor.predict({"instances": [{"image": {"b64": encoded}, "prompt": "what is it"}]}))


def test_a_folder_without_a_model_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_dir", str(tmp_path)]) == EXIT_CODE
    assert capsys.readouterr().err.count("\n") == 1
