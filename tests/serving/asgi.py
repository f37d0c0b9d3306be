"""What the guard's tests share: something in the place of vLLM's app, ways to it, and questions for the real one."""

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator

import httpx
from openai import OpenAI
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen_vqa.serving.adapters.models_in_use import ModelsInUse
from qwen_vqa.serving.admission.api_keys import ApiKey, sha256
from qwen_vqa.serving.admission.authentication import STATE, Admitted
from qwen_vqa.serving.admission.fair_queue import FairQueue
from qwen_vqa.serving.admission.request_bounds import RequestBounds
from qwen_vqa.serving.admission.route_rules import Rule
from qwen_vqa.serving.admission.usage_limits import CallerLimits, UsageMiddleware
from tests.tiny import picture


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body it got."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


NO_LIMITS = CallerLimits(requests_per_minute=0, image_tokens_per_minute=0, running=0)
BOUNDS = RequestBounds(images=4, answers=3, output_tokens=600)


def usage(app: ASGIApp = echo, limits: CallerLimits = NO_LIMITS, **options) -> UsageMiddleware:
    """The middleware around an app, with small bounds."""
    settings = {
        "bounds": BOUNDS,
        "queue": FairQueue(running=4, waiting=4, waiting_per_caller=2),
        "tokens_per_image": 5,
        "tokens_in_low_detail": 2,
        "max_body_bytes": 1000,
        "wait_seconds": 5,
        "in_use": ModelsInUse(),
    }
    return UsageMiddleware(app, limits, **{**settings, **options})


def admitted_as(app: ASGIApp, limited: bool = True, **own_limits: int) -> ASGIApp:
    """The app behind a door that knows callers by the header `caller`, and lets all in."""

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        name = dict(scope["headers"]).get(b"caller")
        key = ApiKey(name=name.decode(), sha256=sha256(name.decode()), **own_limits) if name else None
        scope.setdefault("state", {})[STATE] = Admitted(Rule("POST", "/work", limited=limited), key)
        await app(scope, receive, send)

    return door


@contextlib.asynccontextmanager
async def client_of(app: ASGIApp, address: str = "192.0.2.1") -> AsyncIterator[httpx.AsyncClient]:
    """A client to the app, from this address."""
    transport = httpx.ASGITransport(app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def post(app, bodies, caller: str | None = None, **client_options) -> list[httpx.Response]:
    """These bodies to the app, one after the other."""

    async def ask() -> list[httpx.Response]:
        headers = {"caller": caller} if caller else {}
        async with client_of(app, **client_options) as client:
            return [await client.post("/work", content=body, headers=headers) for body in bodies]

    return asyncio.run(ask())


def image() -> dict:
    """An image part without an image."""
    return {"type": "image_url", "image_url": {"url": "data:,"}}


def ask(client: OpenAI, *content: dict, **options):
    """A question to the running server."""
    messages = [{"role": "user", "content": list(content) or "hi"}]
    return client.chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 2, **options})


def image_part() -> dict:
    """An image part with a small picture."""
    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
