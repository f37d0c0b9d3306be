"""What the guard's tests put in the place of vLLM's app, and a way to it."""

import contextlib
from collections.abc import AsyncIterator

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen_vqa.serving.access import STATE, Admitted
from qwen_vqa.serving.api_keys import ApiKey, sha256
from qwen_vqa.serving.route_rules import Rule


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body it got."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


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
