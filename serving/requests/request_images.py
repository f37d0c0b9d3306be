"""Looks at a request's content before vLLM does, and lets the media connector know where each image stands.

vLLM asks the connector for a URL and no more. What else a request says of its images (which message and part,
which `detail`) goes there by a context variable: connector and request run in the same context.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from threading import Lock
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_vqa.plugin.images.image_limits import ImageError
from qwen_vqa.serving.admission.request_json import SentJson, parsed_body
from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.observability.request_record import request_record
from qwen_vqa.serving.requests.content_checks import (
    ContentError,
    PlacedImage,
    chat_images,
    completion_images,
    messages_images,
    responses_images,
)
from qwen_vqa.serving.requests.request_forms import FORMS

Check = Callable[[dict[str, Any]], list[PlacedImage]]
CHECKS: dict[str, Check] = {
    "/v1/chat/completions": chat_images,
    "/v1/chat/completions/batch": chat_images,
    "/v1/chat/completions/render": chat_images,
    "/v1/chat/completions/tokens": chat_images,
    "/v1/completions": completion_images,
    "/v1/completions/render": completion_images,
    "/generative_scoring": chat_images,
    "/invocations": chat_images,
    "/tokenize": chat_images,
    "/v1/messages": messages_images,
    "/v1/messages/count_tokens": messages_images,
    "/v1/messages/render": messages_images,
    "/v1/decisions": responses_images,  # since vLLM 0.33; it takes text alone, in the form of /v1/responses
    "/v1/responses": responses_images,
    "/v1/responses/render": responses_images,
}

# All images of a request together may be as large as this many of the largest: they are in memory at the same time.
LARGEST_TOGETHER = 4
# By which URLs are told apart before they are compared.
PART_CHARACTERS = 128


class RequestImages:
    """The images of one request: where each stands, and how much they are together."""

    def __init__(self, images: Iterable[PlacedImage] = ()) -> None:
        # By a part of each: a URL is often megabytes of base64, whose hash takes as long as its JSON did.
        self._places: dict[tuple[int, str], list[PlacedImage]] = {}
        for image in images:
            self._places.setdefault(_part(image.url), []).append(image)
        self._spent: Counter[str] = Counter()
        self._lock = Lock()  # pictures are decoded in several threads

    def place_of(self, url: str) -> PlacedImage:
        """Where the request has this image; one that stands in several places comes in their order.

        An image from elsewhere, such as an earlier response's, is placed at "image".
        """
        waiting = self._places.get(_part(url), [])
        for number, image in enumerate(waiting):
            if image.url == url:
                del waiting[number]  # a stream would hold the URL to its end
                return image
        return PlacedImage("", "image")

    def spend(self, amount: int, unit: str, largest: int, place: str) -> None:
        """Add to what the request's images are together; `largest` is the limit of one.

        Raises:
            ImageError: that is too much.
        """
        with self._lock:
            self._spent[unit] += amount
            if self._spent[unit] > LARGEST_TOGETHER * largest:
                raise ImageError(
                    f"{place}: with it, the request's images have more than {LARGEST_TOGETHER * largest:,} {unit} "
                    "together; send fewer or smaller ones."
                )


def _part(url: str) -> tuple[int, str]:
    return len(url), url[-PART_CHARACTERS:]


_REQUEST: ContextVar[RequestImages | None] = ContextVar("qwen_vqa_request_images", default=None)


def request_images() -> RequestImages:
    """Those of the request at hand; none that are known, outside of one."""
    return _REQUEST.get() or RequestImages()


class RequestImagesMiddleware:
    """ASGI middleware: bad content is refused, other forms are written as vLLM takes them, images are noted."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check what goes to a path that takes messages; anything else passes."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", "")).rstrip("/")
        check = CHECKS.get(path) if scope["type"] == "http" else None
        if check is None or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            scope, receive, images = await _checked(path, check, scope, receive)
        except RefusedError as refusal:
            return await _refuse(refusal, send)
        except ContentError as error:
            return await _refuse(RefusedError(400, str(error), param=error.place), send)
        token = _REQUEST.set(images)
        try:
            await self.app(scope, receive, send)
        finally:
            _REQUEST.reset(token)


async def _checked(path: str, check: Check, scope: Scope, receive: Receive) -> tuple[Scope, Receive, RequestImages]:
    """The request as vLLM is to get it, and its images. In a function of its own, whose end frees what it holds."""
    body, receive = await _read(receive)
    content = parsed_body(Headers(raw=scope.get("headers", [])), SentJson.of(scope, body))
    if not isinstance(content, dict):
        return scope, receive, RequestImages()
    if path in FORMS and FORMS[path](content):
        rewritten = SentJson.holding(scope, content)
        scope, receive = _with_body(scope, receive, rewritten.body)
    return scope, receive, RequestImages(check(content))


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


def _with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """The request with another body in place of the one that was read."""
    scope = {**scope, "headers": list(scope["headers"])}
    headers = MutableHeaders(scope=scope)
    headers["content-length"] = str(len(body))
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        if waiting:
            return waiting.pop()
        while (message := await receive())["type"] == "http.request":
            pass  # of the old body
        return message

    return scope, replay


async def _refuse(refusal: RefusedError, send: Send) -> None:
    await refusal.send(send)
    request_record().refused = "content"
