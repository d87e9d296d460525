"""Error responses in the shape of each protocol."""

from starlette.responses import JSONResponse

MAX_CHARACTERS = 500  # of a message, which may quote the request


def error_response(path: str, status: int, message: str, *, close: bool = False) -> JSONResponse:
    """Return an error: OpenAI's object under `/openai`, KServe's `{"error": message}` elsewhere.

    Args:
        path: path of the request.
        close: close the connection after it.
    """
    message = message[:MAX_CHARACTERS]
    content: object = message
    if path.startswith("/openai"):
        kind = "server_error" if status >= 500 else "not_found_error" if status == 404 else "invalid_request_error"
        content = {"message": message, "type": kind, "param": None, "code": None}
    headers = {"connection": "close"} if close else {}
    if status == 503:
        headers["retry-after"] = "5"
    return JSONResponse({"error": content}, status_code=status, headers=headers)
