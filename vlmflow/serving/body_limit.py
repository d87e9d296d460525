"""Middleware that limits the size of a request body. KServe has no such limit."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 32 * 2**20  # bytes


class _TooLarge(Exception):
    pass


class BodyLimit:
    """Answer 413 to a body of more than `limit` bytes, with or without a Content-Length header."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count the bytes of its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        content_length = dict(scope["headers"]).get(b"content-length", b"0")
        received, response_started = 0, False

        async def counting_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise _TooLarge
            return message

        async def tracking_send(message: Message) -> None:
            nonlocal response_started
            response_started = True
            await send(message)

        try:
            if content_length.isdigit() and int(content_length) > self.limit:
                raise _TooLarge
            await self.app(scope, counting_receive, tracking_send)
        except _TooLarge:
            if response_started:
                raise
            text = f"the request is larger than {self.limit // 2**20} MiB"
            await JSONResponse({"error": text}, status_code=413)(scope, receive, send)
