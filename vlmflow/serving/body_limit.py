"""A limit to the size of a request: KServe has none of its own."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 32 * 2**20


class _TooLarge(Exception):
    pass


class BodyLimit:
    """Answers 413 to a body of more than `limit` bytes, whether it is announced or not."""

    def __init__(self, app: ASGIApp, limit: int = MAX_BODY):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        taken, started = 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limit:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if announced.isdigit() and int(announced) > self.limit:
                raise _TooLarge
            await self.app(scope, counted, noted)
        except _TooLarge:
            if started:
                raise
            text = f"the request is larger than {self.limit // 2**20} MiB"
            await JSONResponse({"error": text}, status_code=413)(scope, receive, send)
