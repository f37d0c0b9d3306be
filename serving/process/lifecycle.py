"""The server's life between ready and its end: `/ready`, the drain, and what is told when the engine dies."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.observability.request_record import WATCHED
from qwen_vqa.serving.process.maintenance_responder import LOADING, RETRY_SECONDS, refuse, unavailable

LOOK_SECONDS = 0.1
# For the errors of what runs when the engine dies.
LAST_WORDS_SECONDS = 1.0
ENGINE_DIED = "The engine stopped and is being started again."
DRAINING = "The server is shutting down."
# How an error begins in the middle of a stream, in vLLM's APIs.
ERROR_EVENT = re.compile(rb'^(event: (error|response\.failed)|data: \{"error")', re.MULTILINE)


class Lifecycle:
    """Whether requests are taken, and how many run.

    Args:
        engine_died: asked again and again.
        drain_seconds: what runs may take when told to stop.
    """

    def __init__(self, engine_died: Callable[[], bool], drain_seconds: float):
        self.engine_died = engine_died
        self._drain_seconds = drain_seconds
        self._told_to_stop = asyncio.Event()
        self._cut_off = asyncio.Event()
        self.running = 0

    @property
    def reason(self) -> str | None:
        """Why no request is taken; None while they are."""
        if self.engine_died():
            return ENGINE_DIED
        return DRAINING if self._told_to_stop.is_set() else None

    def refusal(self) -> RefusedError:
        """What a request is told that is not taken, or cut off."""
        return unavailable(self.reason or DRAINING)

    def stop(self) -> None:
        """Take no more requests."""
        self._told_to_stop.set()

    async def ended(self) -> None:
        """Return once the drain is over, or the engine dead: when nothing runs any more."""
        while not self.engine_died() and not self._told_to_stop.is_set():
            await asyncio.sleep(LOOK_SECONDS)
        await self._until_idle(LAST_WORDS_SECONDS if self.engine_died() else self._drain_seconds)
        self._cut_off.set()
        await self._until_idle(LAST_WORDS_SECONDS)

    async def _until_idle(self, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while self.running and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(LOOK_SECONDS)

    async def while_allowed(self, work: Awaitable[None]) -> bool:
        """Do it, unless it is cut off or fails with the engine; returns whether it came to its end."""
        task = asyncio.ensure_future(work)
        cut_off = asyncio.ensure_future(self._cut_off.wait())
        self.running += 1
        try:
            await asyncio.wait({task, cut_off}, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not (self.engine_died() and task.exception()):
                task.result()
                return True
            return False
        finally:
            self.running -= 1
            cut_off.cancel()
            task.cancel()


class LifecycleMiddleware:
    """Refuses with 503 what comes when no request is taken, and gives what is cut off an end that says so."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle):
        self.app = app
        self.lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if path == "/health" and self.lifecycle.engine_died():
            return await Response()(scope, receive, send)  # alive: the supervisor starts another
        if scope["type"] != "http" or path in WATCHED:
            return await self.app(scope, receive, send)
        if self.lifecycle.reason is not None:
            return await refuse(self.lifecycle.refusal(), receive, send)
        answer = _Answer(self.lifecycle, path, send)
        if not await self.lifecycle.while_allowed(self.app(scope, receive, answer.send)):
            await answer.end()


class _Answer:
    """An answer on its way: how far it has come."""

    def __init__(self, lifecycle: Lifecycle, path: str, send: Send):
        self._lifecycle = lifecycle
        self._path = path
        self._send = send
        self._is_stream = False
        self._started = self._ended = False

    async def send(self, message: Message) -> None:
        """As the app's, but for errors of an engine that died: those are 503, since another will come.

        A stream's become the same in an event. vLLM's own speak of a stack trace that its clients do not see.
        """
        if self._ended:
            return
        if self._is_stream and self._lifecycle.engine_died() and ERROR_EVENT.search(message.get("body", b"")):
            return await self.end()
        if message["type"] == "http.response.start":
            if message["status"] >= 500 and self._lifecycle.engine_died():
                return await self._refuse()
            self._started = True
            headers = dict(message.get("headers", []))
            self._is_stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self._ended = True
        await self._send(message)

    async def end(self) -> None:
        """Finish it here: with 503, or with the error event of its API."""
        if not self._started:
            await self._refuse()
        elif not self._ended:
            self._ended = True
            event = _error_event(self._path, self._lifecycle.refusal()) if self._is_stream else b""
            await self._send({"type": "http.response.body", "body": event})

    async def _refuse(self) -> None:
        self._ended = True
        await self._lifecycle.refusal().send(self._send, close=True)


def _error_event(path: str, refusal: RefusedError) -> bytes:
    """As each API writes an error in the middle of its stream."""
    if path == "/v1/messages":
        error = {"type": "error", "error": {"type": "overloaded_error", "message": refusal.message}}
        return f"event: error\ndata: {json.dumps(error)}\n\n".encode()
    if path == "/v1/responses":
        failure = {"type": "error", "code": refusal.code, "message": refusal.message, "param": None}
        return f"event: error\ndata: {json.dumps(failure)}\n\n".encode()
    return b"data: " + refusal.body + b"\n\n"


def attach_ready(app: FastAPI, lifecycle: Lifecycle, port_is_ours: Callable[[], bool]) -> None:
    """GET /ready: 200 while requests are taken and the engine answers, 503 with the reason otherwise.

    Args:
        port_is_ours: until then, another connection may reach the stand-in, which refuses what it is asked.
    """

    @app.get("/ready")
    async def ready() -> Response:
        reason = lifecycle.reason or (None if port_is_ours() else LOADING)
        if reason is None:
            return JSONResponse({"status": "ready"})
        body = unavailable(reason).body
        return Response(body, 503, {"retry-after": str(RETRY_SECONDS)}, media_type="application/json")
