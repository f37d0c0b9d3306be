"""Refusals in the shape of OpenAI's errors, so that its SDK raises the right exception with the right message."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Send

from qwen_vqa.serving.observability.request_record import request_record


@dataclass(eq=False)
class RefusedError(Exception):
    """A request that is not let through: its HTTP status, and what the client is told.

    `type` and `code` are OpenAI's words (`invalid_request_error`, `rate_limit_exceeded`), `param` is the field of the
    request that was at fault, `retry_after` the seconds after which the same request can succeed, `allow` the methods
    that there are where another was used.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None
    allow: Sequence[str] = ()

    @property
    def body(self) -> bytes:
        """OpenAI's error object, as JSON."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def response(self) -> Response:
        """The answer to whom it is refused."""
        request_record().refused = self.code or self.type
        headers = {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.allow:
            headers["allow"] = ", ".join((*self.allow, "HEAD") if "GET" in self.allow else self.allow)
        return Response(self.body, self.status, headers, media_type="application/json")

    async def send(self, send: Send, close: bool = False) -> None:
        """Answer with it; `close` has the client open another connection, which another process may answer."""
        headers = self.response().raw_headers
        if close:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def too_many(message: str, what: str, retry_after: float) -> RefusedError:
    """429: `what` is what there was too much of, `requests` or `tokens`, as OpenAI's `type` has it."""
    return RefusedError(429, message, what, "rate_limit_exceeded", retry_after=retry_after)
