"""The predictor on this machine: started, asked through both protocols, stopped."""

import base64
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx

from components.errors import ServiceError

_STOP_SECONDS = 15.0
_REQUEST_SECONDS = 120.0
_TAIL_LINES = 15


@contextmanager
def endpoint(model: Path, name: str, timeout: float) -> Iterator[str]:
    """Run the predictor on a free port; yields its URL when it is ready, and stops it whatever happens.

    It also stops by itself when this process dies: its stdin is a pipe from here.

    Raises:
        ServiceError: it ends, or is not ready in `timeout` seconds; with the tail of its log.
    """
    port = _free_port()
    command = [sys.executable, "-m", "components.serve.predictor", "--until_stdin_closes"]
    command += ["--model_dir", str(model), "--model_name", name, "--http_port", str(port), "--enable_grpc", "false"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, f"{url}/v2/models/{name}/ready", timeout, log)
            yield url
        except httpx.HTTPError as error:
            raise ServiceError(f"predictor of {model}: {error!r}; its log ends:\n{_tail(log)}") from error
        finally:
            _stop(process)


def converse(url: str, name: str, picture: bytes, prompt: str) -> list[dict[str, Any]]:
    """Put one question through V1 predict and through OpenAI chat; what cannot chat is asked for what it can.

    Returns:
        The exchanges: protocol, path, request (without the picture's bytes), status, response, latency in ms.

    Raises:
        ServiceError: a status other than 200, or two answers that differ.
    """
    encoded = base64.b64encode(picture).decode()
    with httpx.Client(base_url=url, timeout=_REQUEST_SECONDS) as client:
        listed = _exchange(client, "OpenAI models", "/openai/v1/models", None, encoded)
        served = listed["response"]["data"][0]
        chats, instance = "chat" in served["abilities"], _question(served, encoded, prompt)
        predicted = _exchange(client, "V1 predict", f"/v1/models/{name}:predict", {"instances": [instance]}, encoded)
        if not chats:
            return [listed, predicted]
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
            {"type": "text", "text": prompt},
        ]
        body = {"model": name, "messages": [{"role": "user", "content": content}]}
        chatted = _exchange(client, "OpenAI chat", "/openai/v1/chat/completions", body, encoded)
    one = predicted["response"]["predictions"][0]["answer"]
    other = chatted["response"]["choices"][0]["message"]["content"]
    if one != other:
        raise ServiceError(f"{name} answers {one!r} through V1 and {other!r} through OpenAI chat to the same question")
    return [listed, predicted, chatted]


def _question(served: dict[str, Any], encoded: str, prompt: str) -> dict[str, Any]:
    """An instance that the model can answer."""
    abilities, image = set(served["abilities"]), {"image": {"b64": encoded}}
    if "chat" in abilities:
        return {**image, "prompt": prompt}
    if abilities & {"embed", "represent"}:
        return image
    if abilities & {"match", "rank"}:
        return {**image, "text": prompt}
    return {"text": f"a {served['mask_token']}"}


def _exchange(client: httpx.Client, protocol: str, path: str, body: Any, encoded: str) -> dict[str, Any]:
    start = time.perf_counter()
    answer = client.get(path) if body is None else client.post(path, json=body)
    latency = (time.perf_counter() - start) * 1000
    if answer.status_code != 200:
        raise ServiceError(f"{protocol} {path}: status {answer.status_code}: {answer.text[:300]}")
    return {
        "protocol": protocol,
        "path": path,
        "request": _without(body, encoded),
        "status": answer.status_code,
        "response": answer.json(),
        "latency_ms": round(latency, 2),
    }


def _without(value: Any, encoded: str) -> Any:
    """`value` with an ellipsis for the picture: the transcript names it by its uid."""
    if isinstance(value, dict):
        return {key: _without(item, encoded) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, encoded) for item in value]
    return value.replace(encoded, "…") if isinstance(value, str) else value


def _wait(process: subprocess.Popen[bytes], address: str, timeout: float, log: IO[str]) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceError(f"the predictor ended with code {process.returncode}; its log ends:\n{_tail(log)}")
        try:
            if httpx.get(address, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass  # not listening yet
        time.sleep(0.1)
    raise ServiceError(f"the predictor was not ready in {timeout:g} s (deploy.timeout); its log ends:\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _tail(log: IO[str]) -> str:
    log.flush()
    log.seek(0)
    return "".join(log.readlines()[-_TAIL_LINES:]).rstrip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
