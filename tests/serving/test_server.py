"""The server as a process: its address, gRPC, and the end."""

import io
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from vlmflow.errors import ServiceError
from vlmflow.serving import server


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_server_prints_its_addresses_serves_both_protocols_and_ends_on_sigterm(
    chat_model: Path, encoded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = io.StringIO(), {}
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(server, "_configure_logging", lambda: None)

    def use() -> None:
        try:
            deadline = time.monotonic() + 60
            while "http://" not in out.getvalue() and time.monotonic() < deadline:
                time.sleep(0.02)
            (url,) = re.findall(r"http://\S+", out.getvalue())
            seen["models"] = httpx.get(f"{url}/v2/models").json()["models"]
            seen.update(call_grpc(re.findall(r"gRPC at (\S+)", out.getvalue())[0], encoded))
            seen["url"] = url
        finally:
            signal.raise_signal(signal.SIGTERM)

    user = threading.Thread(target=use)
    user.start()
    code = server.serve(chat_model, port=0, name="mine", grpc_port=0)
    user.join()
    assert code == 0 and seen["url"].startswith("http://127.0.0.1:") and seen["models"] == ["mine"]
    assert seen["tokens"] == 3 and "max_new_tokens" in seen["error"] and seen["unload"] == "UNIMPLEMENTED"
    assert seen["live"]


def call_grpc(address: str, encoded: str) -> dict[str, Any]:
    def infer(**parameters: Any) -> Any:
        values = {"image": encoded.encode(), "prompt": b"what is it"}
        inputs: Any = [
            {"name": name, "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [value]}}
            for name, value in values.items()
        ]
        return stub.ModelInfer(pb.ModelInferRequest(model_name="mine", inputs=inputs, parameters=parameters))

    with grpc.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        (answer,) = infer(max_new_tokens={"int64_param": 3}).outputs[0].contents.bytes_contents
        with pytest.raises(grpc.RpcError) as invalid:
            infer(max_new_tokens={"int64_param": 0})
        with pytest.raises(grpc.RpcError) as refused:
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="mine"))
        return {
            "tokens": answer.count(b"<assistant>"),
            "error": invalid.value.details(),
            "unload": refused.value.code().name,
            "live": stub.ServerLive(pb.ServerLiveRequest()).live,
        }


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("nowhere.invalid", 0), ("203.0.113.1", 0)])
def test_an_address_that_cannot_be_used_is_one_line(host: str, port: int) -> None:
    with pytest.raises(ServiceError, match="choose another with --(host|port)"):
        server.bind(host, port)


@pytest.mark.parametrize(
    ("reference", "name"),
    [("models:/eyes@champion", "eyes"), ("models:/eyes/3", "eyes"), ("runs/latest", None), (Path("models"), None)],
)
def test_a_registered_version_is_served_under_its_name(reference: str | Path, name: str | None) -> None:
    assert server.registered_name(reference) == name


def test_the_command_line_listens_on_loopback_without_grpc() -> None:
    options = server.parse_arguments([])
    assert (options.host, options.grpc_port) == ("127.0.0.1", None)
