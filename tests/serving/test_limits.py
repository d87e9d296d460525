"""What a request can cost: slow connections, slow, large and malformed bodies, clients that have gone."""

import asyncio
import json
import random
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from starlette.types import Message

from tests.serving.conftest import served
from vlmflow.serving import header_timeout, request_limits
from vlmflow.serving.app import create_app
from vlmflow.serving.predictor import Predictor
from vlmflow.serving.request_limits import RequestLimits

CHAT, V1, V2 = "/openai/v1/chat/completions", "/v1/models/vlm:predict", "/v2/models/vlm/infer"


def bodies(image: str) -> dict[str, Any]:
    """A small valid request of each protocol."""
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "what is it"}]
    values = {"image": image, "prompt": "what is it"}
    return {
        CHAT: {"model": "vlm", "max_tokens": 1, "messages": [{"role": "user", "content": content}]},
        V1: {"instances": [values, {"text": "a"}], "parameters": {"max_new_tokens": 1}},
        V2: {
            "inputs": [{"name": k, "shape": [1], "datatype": "BYTES", "data": [v]} for k, v in values.items()],
            "parameters": {"max_new_tokens": 1},
        },
    }


def mutate(rng: random.Random, value: Any) -> Any:
    """Replace one random part of a JSON value by something that a parser or a model may stumble over."""
    odd = [None, True, -1, 0, 1e308, 2**63, 10**400, "", "\ud800", "\0", "<image>", "x" * 30_000, [], {}, [[]], [1]]
    odd += [{"b64": []}, {"": {}}, float("nan"), "9" * 5_000, "<box>1e9,0,1,1</box>", ["a"] * 70]
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[key] = mutate(rng, value[key])
        if rng.random() < 0.1:
            del copy[key]
        return copy
    return rng.choice(odd)


def test_no_body_makes_a_server_error(predictor: Predictor, encoded: str) -> None:
    rng, app, statuses = random.Random(0), create_app(predictor), set()
    fixed = [b"[" * 100_000 + b"]" * 100_000, b"1" * 5_000, b'{"seed": ' + b"1" * 5_000 + b"}", b"\xff", b"", b"null"]
    fixed += [b'{"model": "vlm", "temperature": 1e-40}', b'{"instances": ["\\ud800"]}', b'{"parameters": [1]}']

    async def send() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path, valid in bodies(encoded).items():
                for body in [valid] + [mutate(rng, valid) for _ in range(100)]:
                    content = json.dumps(body).encode("utf-8", "surrogatepass")
                    headers = rng.choice([{}, {"content-type": "application/json"}, {"ce-id": "1"}])
                    if path == V2 and rng.random() < 0.3:
                        headers = {"inference-header-content-length": str(rng.randrange(len(content) + 9))}
                    response = await client.post(path, content=content, headers=headers)
                    statuses.add(response.status_code)
                    assert response.status_code < 500, (path, headers, content[:300], response.text)
                for content in fixed:
                    headers = {"content-type": "application/json"}
                    assert (await client.post(path, content=content, headers=headers)).status_code in (400, 404, 422)

    asyncio.run(send())
    assert {200, 400} <= statuses


def test_a_temperature_near_zero_is_greedy(client: httpx.Client, encoded: str) -> None:
    body = {**bodies(encoded)[CHAT], "max_tokens": 8}
    answers = [client.post(CHAT, json={**body, "temperature": t}).json()["choices"] for t in (0, 1e-40, 1e-3)]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("path", ["/v2/repository/models/vlm/unload", "/v2/repository/models/vlm/load"])
def test_nobody_can_unload_the_model(client: httpx.Client, path: str) -> None:
    assert client.post(path, json={}).status_code == 404
    assert client.get("/v2/models/vlm/ready").status_code == 200 and client.get("/v2").json()["extensions"] == []


@pytest.mark.parametrize("broken", [{"ready": False}, {"_busy_since": 0.0}], ids=["device", "stuck"])
def test_liveness_and_readiness_fail_when_the_model_cannot_answer(
    client: httpx.Client, predictor: Predictor, encoded: str, monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any]
) -> None:
    for name, value in broken.items():
        monkeypatch.setattr(predictor, name, value)
    monkeypatch.setattr(time, "monotonic", lambda real=time.monotonic: real() + 10_000)
    for path in ("/", "/v2/health/live", "/v2/health/ready", "/v2/models/vlm/ready", "/v1/models/vlm"):
        assert client.get(path).status_code == 503, path
    for path, body in bodies(encoded).items():
        assert client.post(path, json=body).status_code == 503, path


def test_health_is_answered_while_a_request_runs(
    client: httpx.Client, predictor: Predictor, encoded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, finish = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> list[Any]:
        started.set()
        assert finish.wait(10)
        raise ValueError("too slow")

    monkeypatch.setattr("vlmflow.serving.answering.answer_prompts", slow)
    asking = threading.Thread(target=lambda: client.post(CHAT, json=bodies(encoded)[CHAT]))
    asking.start()
    assert started.wait(10)
    assert client.get("/v2/health/live", timeout=1).status_code == 200
    finish.set()
    asking.join()


def test_a_request_whose_client_has_gone_is_not_computed(predictor: Predictor, encoded: str) -> None:
    finish, body = threading.Event(), json.dumps(bodies(encoded)[V1]).encode()
    busy, called = predictor._thread.submit(finish.wait, 10), []
    app = create_app(predictor)

    async def ask() -> None:
        messages: list[Message] = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]

        async def receive() -> Message:
            return messages.pop(0)

        async def send(message: Message) -> None:
            called.append(message)

        scope = {"type": "http", "method": "POST", "path": V1, "raw_path": V1.encode(), "query_string": b""}
        await asyncio.wait_for(app({**scope, "headers": [], "http_version": "1.1"}, receive, send), 5)

    asyncio.run(ask())
    finish.set()
    assert busy.result() and called == [] and predictor._thread._work_queue.qsize() == 0


def test_too_many_waiting_requests_and_too_many_bytes_get_a_503(
    client: httpx.Client, encoded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_limits, "MAX_WAITING", 0)
    response = client.post(CHAT, json=bodies(encoded)[CHAT])
    assert response.status_code == 503 and response.headers["retry-after"]
    assert response.json()["error"]["type"] == "server_error" and client.get("/v2/health/live").status_code == 200
    monkeypatch.undo()
    monkeypatch.setattr(request_limits, "MAX_BODIES", 100)
    assert client.post(V1, json=bodies(encoded)[V1]).status_code == 503
    monkeypatch.undo()
    assert client.post(V1, json=bodies(encoded)[V1]).status_code == 200  # nothing is held any more


def test_json_of_very_many_values_is_rejected(client: httpx.Client) -> None:
    response = client.post(V1, content=b"[" + b"{}," * 100_000 + b"{}]")
    assert response.status_code == 400 and "100,000 values" in response.json()["error"]


def test_slow_headers_and_slow_bodies_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_timeout, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(request_limits, "BODY_SECONDS", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(0.6)  # longer than both: an answer may take its time
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

    with served(RequestLimits(app)) as url:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        posted = b"POST /openai/v1 HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{"
        beginnings = [b"", b"GET / HT", posted, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"]
        connections = [socket.create_connection(address, timeout=5) for _ in beginnings]
        for connection, beginning in zip(connections, beginnings, strict=True):
            connection.sendall(beginning)
        answers = [connection.recv(4096) for connection in connections]
        assert answers[:2] == [b"", b""] and answers[2].startswith(b"HTTP/1.1 408") and b'"type"' in answers[2]
        assert answers[3].endswith(b"ok")
        connections[3].sendall(b"GET / HT")  # a second request on the same connection
        assert connections[3].recv(4096) == b""
        for connection in connections:
            connection.close()


def test_an_announced_body_that_is_too_large_is_refused_before_it_is_sent(client: httpx.Client) -> None:
    head = f"POST {V1} HTTP/1.1\r\nhost: a\r\ncontent-length: {2**40}\r\nexpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
