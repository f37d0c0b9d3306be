"""Errors as the API that was asked writes them: OpenAI's shape with its words, and Anthropic's on /v1/messages.

vLLM names one kind of error in three ways (BadRequestError, Bad Request, invalid_request_error) and writes FastAPI's
`{"detail": ...}` where a body cannot be read.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_vqa.serving.errors.validation_errors import sentence
from qwen_vqa.serving.observability.request_record import request_record

ANTHROPIC_PATHS = "/v1/messages"
# https://docs.anthropic.com/en/api/errors
_BAD_REQUEST = "invalid_request_error"
_ANTHROPIC_TYPES = {
    400: _BAD_REQUEST,
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_OURS = (_BAD_REQUEST, "server_error", "requests", "tokens")  # serving/errors/refusals.py
_LONGEST_NAME = 100
_MOST_NAMES = 20
_UNKNOWN_MODEL = "The model `"
# vLLM's checks of numbers and texts begin with the field that they mean: "n must be at least 1, got 0."
_FIELD = re.compile(r"([a-z_]+) (must|cannot|should|is|has|contains)\b")


class ApiErrorsMiddleware:
    """Rewrites the error of every answer whose status says that it is one.

    Args:
        names: of the models there are, adapters included.
        fields: of requests, by which `param` is found in a message that begins with one.
    """

    def __init__(self, app: ASGIApp, names: Callable[[], list[str]], fields: frozenset[str]) -> None:
        self.app = app
        self._names = names
        self._fields = fields

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        held: list[Message] = []

        async def rewritten(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_error(message):
                held.append(message)
            elif not held:
                await send(message)
            else:
                held.append(message)
                if not message.get("more_body"):
                    for part in self._rewritten(held, path):
                        await send(part)

        await self.app(scope, receive, rewritten)

    def _rewritten(self, held: list[Message], path: str) -> list[Message]:
        start, *parts = held
        error = _error(b"".join(part.get("body", b"") for part in parts))
        if error is None:
            return held
        error = self._in_openai_words(start["status"], error)
        content: dict[str, Any] = {"error": error}
        if path == ANTHROPIC_PATHS or path.startswith(f"{ANTHROPIC_PATHS}/"):
            kind = _ANTHROPIC_TYPES.get(
                start["status"], "api_error" if start["status"] >= 500 else _ANTHROPIC_TYPES[400]
            )
            more = {name: error[name] for name in ("param", "code") if error.get(name) is not None}
            content = {"type": "error", "error": {"type": kind, "message": error["message"], **more}}
        body = json.dumps(content).encode()
        headers = [header for header in start["headers"] if header[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        return [{**start, "headers": headers}, {"type": "http.response.body", "body": body}]

    def _in_openai_words(self, status: int, error: dict[str, Any]) -> dict[str, Any]:
        message, param, code = str(error.get("message")), error.get("param"), error.get("code")
        if error.get("type") in _OURS:
            return error
        if status == 404 and message.startswith(_UNKNOWN_MODEL):
            message, param, code = self._unknown_model(), "model", "model_not_found"
        if param is None and (field := _FIELD.match(message)) and field[1] in self._fields:
            param = field[1]
        message = sentence(message)
        kind = _BAD_REQUEST if status < 500 else "server_error"
        return {"message": message, "type": kind, "param": param, "code": code if isinstance(code, str) else None}

    def _unknown_model(self) -> str:
        asked = (request_record().model or "")[:_LONGEST_NAME]
        names = self._names()
        more = f" and {len(names) - _MOST_NAMES} more (GET /v1/models)" if len(names) > _MOST_NAMES else ""
        return f"The model `{asked}` does not exist. There are: {', '.join(names[:_MOST_NAMES])}{more}."


def _is_error(start: Message) -> bool:
    kind = dict(start.get("headers", ())).get(b"content-type", b"")
    return start["status"] >= 400 and kind.startswith(b"application/json")


def _error(body: bytes) -> dict[str, Any] | None:
    """The error in an answer of either shape, or FastAPI's; None where it is another's."""
    try:
        content = json.loads(body)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("error"), dict):
        return content["error"]
    return {"message": str(content["detail"])} if "detail" in content else None
