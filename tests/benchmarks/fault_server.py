"""A small OpenAI server whose faults a test chooses by the model's name. What is tested is the client."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiohttp import web

MODELS = (
    *("good", "closes", "error-event", "429", "slow", "bad-json", "empty", "json", "stalls", "groups", "plain"),
    *("aborts", "null-error"),
)


@dataclass
class FaultServer:
    """Its address with /v1, the bodies that were sent to it, and at which of them the model `stalls` stands still."""

    url: str
    bodies: list[dict] = field(default_factory=list)
    stall_at: int = 0


SERVER = web.AppKey("server", FaultServer)


@contextlib.contextmanager
def fault_server() -> Iterator[FaultServer]:
    """Run it in a thread, on a free port."""
    loop = asyncio.new_event_loop()
    server = FaultServer("")
    started = threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**26)
        app[SERVER] = server
        app.add_routes([web.get("/v1/models", _models), web.post("/v1/chat/completions", _chat)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        started.set()
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": name} for name in MODELS]})


async def _chat(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    model = body["model"]
    server = request.app[SERVER]
    server.bodies.append(body)
    if model == "429":
        return web.json_response({"error": {"message": "slow down"}}, status=429)
    if model == "json":
        return web.json_response({"choices": [{"message": {"content": "not a stream"}}]})
    if model == "plain" and "ignore_eos" in body:
        return web.json_response({"error": {"message": "unknown field ignore_eos"}}, status=400)
    if model == "stalls" and len(server.bodies) == server.stall_at:
        time.sleep(1.0)  # the whole server stands still, as one does in a garbage collection
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await _stream(request, response, model, body["max_tokens"])
    return response


async def _stream(request: web.Request, response: web.StreamResponse, model: str, tokens: int) -> None:
    if model == "empty":
        await response.write(b"data: [DONE]\n\n")
        return
    step = 3 if model == "groups" else 1
    for number in range(step, tokens + 1, step):
        await response.write(_event(number, number + step > tokens, model))
        if number == step and model == "closes":
            assert request.transport is not None
            request.transport.abort()
        if number == step and model == "error-event":
            await response.write(b'data: {"error": {"message": "out of memory", "code": 500}}\n\ndata: [DONE]\n\n')
            return
        if number == step and model == "aborts":
            await response.write(b'data: {"choices": [{"delta": {}, "finish_reason": "abort"}]}\n\ndata: [DONE]\n\n')
            return
        if number == step and model == "bad-json":
            await response.write(b'data: {"choices": [{"del\n\n')
        await asyncio.sleep(30 if model == "slow" else 0.03 if model == "groups" else 0.002)
    await response.write(b"data: [DONE]\n\n")


def _event(number: int, last: bool, model: str) -> bytes:
    event: dict = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop" if last else None}]}
    if model == "null-error":
        event["error"] = None
    if model != "plain":
        event["usage"] = {"prompt_tokens": 10, "completion_tokens": number, "total_tokens": 10 + number}
    return b"data: " + json.dumps(event).encode() + b"\n\n"
