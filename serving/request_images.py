"""Looks at a request's content before vLLM does, and lets the media connector know where each image stands.

vLLM asks the connector for a URL and no more. What else a request says of its images (which message and part,
which `detail`) goes there by a context variable: connector and request run in the same context.
"""

import json
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_vqa.serving.content_checks import (
    ContentError,
    PlacedImage,
    chat_images,
    messages_images,
    responses_images,
)

Check = Callable[[dict[str, Any]], list[PlacedImage]]
CHECKS: dict[str, Check] = {
    "/v1/chat/completions": chat_images,
    "/v1/chat/completions/batch": chat_images,
    "/v1/chat/completions/render": chat_images,
    "/v1/chat/completions/tokens": chat_images,
    "/generative_scoring": chat_images,
    "/invocations": chat_images,
    "/tokenize": chat_images,
    "/v1/messages": messages_images,
    "/v1/messages/count_tokens": messages_images,
    "/v1/messages/render": messages_images,
    "/v1/responses": responses_images,
    "/v1/responses/render": responses_images,
}

# By hash: the URL of an image is often megabytes of base64, and a stream would hold it to its end.
_PLACES: ContextVar[dict[int, deque[PlacedImage]] | None] = ContextVar("qwen_vqa_image_places", default=None)


def place_of(url: str) -> PlacedImage:
    """Where the request at hand has this image; one that stands in several places comes in their order.

    An image from elsewhere, such as an earlier response's, is placed at "image".
    """
    waiting = (_PLACES.get() or {}).get(hash(url))
    return waiting.popleft() if waiting else PlacedImage("", "image")


class RequestImagesMiddleware:
    """ASGI middleware: bad content is answered with 400; images are noted for `place_of`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check what goes to a path that takes messages; anything else passes."""
        check = CHECKS.get(scope.get("path", "").rstrip("/")) if scope["type"] == "http" else None
        if check is None or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body, replay = await _read(receive)
        try:
            images = check(parsed) if isinstance(parsed := _parsed(body), dict) else []
        except ContentError as error:
            await _refusal(error, check)(scope, receive, send)
            return
        places: dict[int, deque[PlacedImage]] = {}
        for image in images:
            places.setdefault(hash(image.url), deque()).append(PlacedImage("", image.place, image.detail))
        token = _PLACES.set(places)
        try:
            await self.app(scope, replay, send)
        finally:
            _PLACES.reset(token)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None  # vLLM says what is wrong with it


async def _read(receive: Receive) -> tuple[bytes, Receive]:
    """The whole body, and a `receive` that begins again."""
    chunks: deque[Message] = deque()
    while True:
        message = await receive()
        chunks.append(message)
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    body = b"".join(message.get("body", b"") for message in chunks)

    async def replay() -> Message:
        return chunks.popleft() if chunks else await receive()

    return body, replay


def _refusal(error: ContentError, check: Check) -> JSONResponse:
    """The error as the API that was asked writes it."""
    if check is messages_images:
        content: dict[str, Any] = {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": str(error)},
        }
    else:
        content = {
            "error": {"message": str(error), "type": "BadRequestError", "param": error.place, "code": 400},
        }
    return JSONResponse(content, status_code=400)
