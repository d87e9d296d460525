"""Middleware that limits what a request can cost before a model sees it. KServe and uvicorn have no such limits."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress

import orjson
from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlmflow.serving.error_response import error_response

MAX_BODY = 32 * 2**20  # bytes
MAX_BODIES = 256 * 2**20  # bytes of all requests together
BODY_SECONDS = 60.0  # for a body to arrive
MAX_VALUES = 100_000  # in the JSON of a body; small values take 20 times their size in memory
MAX_WAITING = 64  # requests that wait for the model or use it
BINARY_HEADER = b"inference-header-content-length"  # KServe V2: the length of the JSON before binary data

REQUESTS = Counter("vlmflow_requests", "Requests by protocol and HTTP status.", ["protocol", "status"])


class _Rejected(Exception):
    def __init__(self, status: int, message: str):
        self.status, self.message = status, message


class RequestLimits:
    """Read each body whole, within limits of size, time and JSON; stop requests whose client has gone; count them all.

    It answers 400 to a body that is not JSON, 408 to one that is too slow, 413 to one that is too large, and 503 while
    too many requests wait. GET requests, such as health checks, always pass.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self.held, self.waiting = 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or reject it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                REQUESTS.labels(_protocol(scope["path"]), str(message["status"])).inc()
            await send(message)

        if scope["method"] != "POST":
            await self.app(scope, receive, counting_send)
            return
        body = bytearray()
        try:
            await self._read(scope, receive, body)
            if self.waiting >= MAX_WAITING:
                raise _Rejected(503, f"{MAX_WAITING} requests are waiting; try again later")
            _check_json(scope, body)
        except _Rejected as rejected:
            response = error_response(scope["path"], rejected.status, rejected.message, close=rejected.status != 400)
            await response(scope, receive, counting_send)
        else:
            self.waiting += 1
            try:
                await _answer(self.app, scope, bytes(body), receive, counting_send)
            except Exception:  # answered outside of this middleware
                REQUESTS.labels(_protocol(scope["path"]), "500").inc()
                raise
            finally:
                self.waiting -= 1
        finally:
            self.held -= len(body)

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Append the request's body to `body`. One that is too large is read to its end: a client that is still
        sending sees only a reset connection, not the answer.
        """
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        large = length.isdigit() and int(length[:20]) > MAX_BODY
        too_large = _Rejected(413, f"the request is larger than {MAX_BODY // 2**20} MiB")
        if large and headers.get(b"expect", b"").lower() == b"100-continue":  # it has not sent anything yet
            raise too_large
        more = True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Rejected(400, "the client has gone")
                    more, chunk = message.get("more_body", False), message.get("body", b"")
                    large = large or len(body) + len(chunk) > MAX_BODY
                    if large:
                        self.held -= len(body)
                        body.clear()
                        continue
                    if self.held + len(chunk) > MAX_BODIES:
                        raise _Rejected(503, "too many large requests at once; try again later")
                    self.held += len(chunk)
                    body += chunk
        except TimeoutError:
            if not large:
                raise _Rejected(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
        if large:
            raise too_large


def _check_json(scope: Scope, body: bytearray) -> None:
    """Check that the body is JSON that every parser reads alike: no lone surrogates, NaN, huge numbers or nesting."""
    content = bytes(body)
    if (length := dict(scope["headers"]).get(BINARY_HEADER, b"")).isdigit():
        content = content[: int(length[:20])]
    if content.count(b",") + content.count(b"[") + content.count(b"{") > MAX_VALUES:
        raise _Rejected(400, f"the body has more than {MAX_VALUES:,} values")
    try:
        orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise _Rejected(400, f"the body is not JSON: {error}") from None


async def _answer(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Call the app with `body`; cancel it if the client goes before the answer."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.ensure_future(_wait_until_gone(receive))

    async def replay() -> Message:
        if pending:
            return pending.pop()
        await asyncio.shield(gone)
        return {"type": "http.disconnect"}

    answered: Awaitable[None] = app(scope, replay, send)
    answer = asyncio.ensure_future(answered)
    try:
        await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
        answer.cancel()  # does nothing if it is done
        with suppress(asyncio.CancelledError):
            await answer
    finally:
        answer.cancel()
        gone.cancel()


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _protocol(path: str) -> str:
    first = path.split("/", 2)[1] if path.startswith("/") else ""
    return first if first in ("v1", "v2", "openai") else "other"
