"""Test an endpoint with one real image. On this machine, start the predictor for the test and stop it afterwards."""

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

from vlmflow.errors import ServiceError

_STOP_SECONDS = 15.0
_REQUEST_SECONDS = 120.0
_TAIL_LINES = 15


@contextmanager
def local_predictor(model: Path, name: str, timeout: float) -> Iterator[str]:
    """Run the predictor on a free port: yield its URL when it is ready, and stop it at the end in any case.

    It also stops when this process dies, because its stdin is a pipe from here.

    Raises:
        ServiceError: it exits, or is not ready within `timeout` seconds; the message ends with the tail of its log.
    """
    port = _free_port()
    command = [sys.executable, "-m", "vlmflow.serving.server", "--until_stdin_closes"]
    command += ["--model_dir", str(model), "--model_name", name, "--http_port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, f"{url}/v2/models/{name}/ready", timeout, log)
            yield url
        except httpx.HTTPError as error:
            raise ServiceError(f"predictor of {model}: {error!r}; its log ends:\n{_tail(log)}") from error
        finally:
            _stop(process)


def smoke_test(
    url: str, name: str, image: bytes, prompt: str, *, openai: str = "/openai/v1", host: str = ""
) -> list[dict[str, Any]]:
    """Ask the same question through V1 predict and OpenAI chat. A model that cannot chat gets a request it can answer.

    Args:
        image: an encoded image.
        openai: path of OpenAI's protocol. A server whose model list has no abilities is not our predictor and is
            tested through OpenAI chat only.
        host: host name of the endpoint if `url` is the address of an ingress.

    Returns:
        The exchanges: protocol, path, request (without the image's bytes), status, response, latency in ms.

    Raises:
        ServiceError: the endpoint cannot be reached, returns a status other than 200 or an unexpected body, or gives
            different answers through the two protocols.
    """
    encoded = base64.b64encode(image).decode()
    headers = {"Host": host} if host else {}
    try:
        with httpx.Client(base_url=url, timeout=_REQUEST_SECONDS, headers=headers) as client:
            return _run_exchanges(client, name, encoded, prompt, openai)
    except httpx.HTTPError as error:
        raise ServiceError(f"{name} at {host or url}: {type(error).__name__}: {error}") from error
    except (LookupError, TypeError, ValueError) as error:
        raise ServiceError(f"{name} at {host or url}: the response does not follow its protocol: {error!r}") from error


def _run_exchanges(client: httpx.Client, name: str, encoded: str, prompt: str, openai: str) -> list[dict[str, Any]]:
    listing = _send(client, "OpenAI models", f"{openai}/models", None, encoded)
    served = listing["response"]["data"][0]
    abilities = served.get("abilities", ["chat"])
    exchanges, answers = [listing], {}
    if "abilities" in served:
        body = {"instances": [_sample_request(served, encoded, prompt)]}
        exchanges.append(_send(client, "V1 predict", f"/v1/models/{name}:predict", body, encoded))
        answers["V1"] = exchanges[-1]["response"]["predictions"][0].get("answer")
    if "chat" in abilities:
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
            {"type": "text", "text": prompt},
        ]
        body = {"model": name, "messages": [{"role": "user", "content": content}]}
        exchanges.append(_send(client, "OpenAI chat", f"{openai}/chat/completions", body, encoded))
        answers["OpenAI chat"] = exchanges[-1]["response"]["choices"][0]["message"]["content"]
        if len(set(answers.values())) > 1:
            different = " and ".join(f"{answer!r} through {protocol}" for protocol, answer in answers.items())
            raise ServiceError(f"{name} answers the same question with {different}")
    return exchanges


def _sample_request(served: dict[str, Any], encoded: str, prompt: str) -> dict[str, Any]:
    """Return a V1 instance that the model can answer."""
    abilities, image = set(served["abilities"]), {"image": {"b64": encoded}}
    if "chat" in abilities:
        return {**image, "prompt": prompt}
    if abilities & {"embed", "features"}:
        return image
    if abilities & {"image_text_matching", "retrieval"}:
        return {**image, "text": prompt}
    return {"text": f"a {served['mask_token']}"}


def _send(client: httpx.Client, protocol: str, path: str, body: Any, encoded: str) -> dict[str, Any]:
    """GET `path`, or POST `body` to it if there is one. Returns the exchange for the transcript."""
    start = time.perf_counter()
    response = client.get(path) if body is None else client.post(path, json=body)
    latency = (time.perf_counter() - start) * 1000
    if response.status_code != 200:
        raise ServiceError(f"{protocol} {path}: status {response.status_code}: {response.text[:300]}")
    return {
        "protocol": protocol,
        "path": path,
        "request": _redact_image(body, encoded),
        "status": response.status_code,
        "response": response.json(),
        "latency_ms": round(latency, 2),
    }


def _redact_image(value: Any, encoded: str) -> Any:
    """Replace the encoded image in `value` with an ellipsis; the transcript refers to the image by its uid."""
    if isinstance(value, dict):
        return {key: _redact_image(item, encoded) for key, item in value.items()}
    if isinstance(value, list):
        return [_redact_image(item, encoded) for item in value]
    return value.replace(encoded, "…") if isinstance(value, str) else value


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, timeout: float, log: IO[str]) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceError(f"the predictor exited with code {process.returncode}; its log ends:\n{_tail(log)}")
        try:
            if httpx.get(url, timeout=2).status_code == 200:
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
