"""What a drain and a dead engine do to requests: the middleware alone, around an app that answers slowly."""

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from qwen_vqa.serving.admission.fair_queue import FairQueue
from qwen_vqa.serving.process.lifecycle import Lifecycle, LifecycleMiddleware, attach_ready
from tests.serving.asgi import admitted_as, client_of, usage

PIECES = 5


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    """A stream: five pieces in a quarter of a second for /short, without an end for any other path."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    number = 0
    while scope["path"] != "/short" or number < PIECES:
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        await asyncio.sleep(0.05)
        number += 1
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """Never answers."""
    await asyncio.Event().wait()


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    """As vLLM answers when its engine is dead."""
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"EngineCore encountered an issue."})


def drained(app, *paths: str, seconds: float = 1.0) -> list[httpx.Response]:
    """Requests to these paths, and a drain that begins when they run."""

    async def run() -> list[httpx.Response]:
        lifecycle = Lifecycle(lambda: False, seconds)
        async with client_of(LifecycleMiddleware(app, lifecycle)) as client:
            requests = [asyncio.create_task(client.post(path, json={})) for path in paths]
            while lifecycle.running < len(paths):
                await asyncio.sleep(0.01)
            lifecycle.stop()
            late = asyncio.create_task(client.post("/short"))
            await lifecycle.ended()
            assert lifecycle.running == 0
            return [*[await request for request in requests], await late]

    return asyncio.run(run())


def last_event(reply: httpx.Response) -> dict:
    return json.loads(reply.text.strip().rsplit("data: ", 1)[1])


def test_what_runs_may_finish_and_what_comes_is_refused():
    short, late = drained(slow, "/short")
    assert short.text.endswith("data: [DONE]\n\n")
    assert late.status_code == 503
    assert late.headers["retry-after"] and late.headers["connection"] == "close"
    assert late.json()["error"]["message"] == "The server is shutting down."


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/chat/completions", lambda event: event["error"]["message"]),
        ("/v1/messages", lambda event: event["error"]["message"]),
        ("/v1/responses", lambda event: event["message"]),
    ],
)
def test_a_stream_that_takes_too_long_ends_with_its_apis_error(path: str, message):
    reply, _ = drained(slow, path, seconds=0.2)
    assert reply.status_code == 200
    assert message(last_event(reply)) == "The server is shutting down."
    assert "[DONE]" not in reply.text


def test_an_answer_that_has_not_begun_becomes_503():
    reply, _ = drained(silent, "/v1/chat/completions", seconds=0.2)
    assert reply.status_code == 503


def test_who_waits_for_a_turn_has_it_in_a_drain():
    queue = FairQueue(running=1, waiting=8, waiting_per_caller=8)
    *replies, late = drained(admitted_as(usage(slow, queue=queue)), "/short", "/short", "/short", seconds=10)
    assert all(reply.text.endswith("data: [DONE]\n\n") for reply in replies)
    assert late.status_code == 503
    assert (queue.running, queue.waiting) == (0, 0)


def test_who_waits_for_a_turn_when_a_drain_is_over_gets_503():
    queue = FairQueue(running=1, waiting=8, waiting_per_caller=8)
    runs, *waited, _ = drained(admitted_as(usage(slow, queue=queue)), "/endless", "/short", "/short", seconds=0.3)
    assert last_event(runs)["error"]["message"] == "The server is shutting down."
    for reply in waited:
        assert reply.status_code == 503
        assert reply.json()["error"]["message"] == "The server is shutting down."
    assert (queue.running, queue.waiting) == (0, 0)


def test_it_is_not_ready_while_the_stand_in_may_still_be_asked():
    async def look() -> list[httpx.Response]:
        handed_over: list[bool] = []
        app = FastAPI()
        attach_ready(app, Lifecycle(lambda: False, 60), lambda: bool(handed_over))
        async with client_of(app) as client:
            before = await client.get("/ready")
            handed_over.append(True)
            return [before, await client.get("/ready")]

    before, after = asyncio.run(look())
    assert (before.status_code, after.status_code) == (503, 200)
    assert before.json()["error"]["message"] == "The model is loading."


def test_a_drain_ends_as_soon_as_nothing_runs():
    async def run() -> float:
        lifecycle = Lifecycle(lambda: False, 60)
        lifecycle.stop()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await lifecycle.ended()
        return loop.time() - began

    assert asyncio.run(run()) < 1


def test_an_error_of_a_dead_engine_is_503_and_the_server_alive():
    async def ask() -> list[httpx.Response]:
        dead: list[bool] = []
        lifecycle = Lifecycle(lambda: bool(dead), 60)

        async def dies(scope: Scope, receive: Receive, send: Send) -> None:
            dead.append(True)
            await failing(scope, receive, send)

        async with client_of(LifecycleMiddleware(dies, lifecycle)) as client:
            return [await client.post("/v1/chat/completions"), await client.post("/any"), await client.get("/health")]

    first, second, health = asyncio.run(ask())
    for reply in (first, second):
        assert reply.status_code == 503
        assert "started again" in reply.json()["error"]["message"]
        assert int(reply.headers["retry-after"]) >= 1
    assert health.status_code == 200
