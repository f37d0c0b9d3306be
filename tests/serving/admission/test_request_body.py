"""The body of a request: bounded while it is read, and handed on as it was."""

import asyncio
import itertools

import httpx
import pytest
from openai import APIStatusError

from qwen_vqa.serving.admission import request_body
from qwen_vqa.serving.admission.fair_queue import FairQueue
from qwen_vqa.serving.admission.usage_limits import CallerLimits
from tests.serving.asgi import admitted_as, ask, client_of, echo, post, usage


def test_the_app_gets_the_very_body():
    body = b' {"messages" : [],\n "n":1, "n": 2 }\xc3\xa9'
    assert post(admitted_as(usage()), [body])[0].content == body


def test_routes_that_do_no_work_are_let_through_unread():
    seen = usage(limits=CallerLimits(1, 1, 1), max_body_bytes=10)
    replies = post(admitted_as(seen, limited=False), [b"x" * 100] * 5, caller="alice")
    assert [reply.status_code for reply in replies] == [200] * 5


def test_a_body_that_is_too_long_is_413_whether_it_says_so_or_not():
    async def chunks(count: int, sent: list):
        for _ in range(count):
            sent.append(1)
            yield b"x" * 100

    async def ask():
        async with client_of(admitted_as(usage())) as client:
            says_so = await client.post("/work", content=b"x" * 1001)
            within = await client.post("/work", content=chunks(10, []))
            beyond = await client.post("/work", content=chunks(11, []))
            lies = await client.post("/work", content=chunks(11, []), headers={"content-length": "5"})
            return says_so, within, beyond, lies

    says_so, within, beyond, lies = asyncio.run(ask())
    assert [reply.status_code for reply in (says_so, within, beyond, lies)] == [413, 200, 413, 413]
    assert beyond.json()["error"]["code"] == "body_too_large"
    assert "--max-body-mb" in says_so.json()["error"]["message"]


def test_reading_stops_where_the_bound_is():
    read = itertools.count(1)
    last = 0

    async def receive():
        nonlocal last
        last = next(read)
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [], "client": ("192.0.2.1", 1)}
    asyncio.run(admitted_as(usage())(scope, receive, send))
    assert sent[0]["status"] == 413
    assert last == 11


def test_a_body_that_stalls_is_given_up_and_its_memory_with_it(monkeypatch):
    monkeypatch.setattr(request_body, "STALL_SECONDS", 0.05)
    app = usage()

    async def slowly():
        yield b"x" * 100
        await asyncio.sleep(1)
        yield b"x"

    async def receive(chunks=slowly()):  # noqa: B008
        return {"type": "http.request", "body": await anext(chunks), "more_body": True}

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(admitted_as(app)({"type": "http", "headers": [], "client": ("192.0.2.1", 1)}, receive, send))
    assert sent[0]["status"] == 408
    assert app.bodies.held == 0


def test_a_body_that_comes_too_slowly_is_given_up(monkeypatch):
    """Each piece comes in time, the whole would take for ever."""
    monkeypatch.setattr(request_body, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(request_body, "BYTES_PER_SECOND", 100)
    app = usage()
    pieces = 0

    async def receive():
        nonlocal pieces
        pieces += 1
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": pieces < 1000}

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(admitted_as(app)({"type": "http", "headers": [], "client": ("192.0.2.1", 1)}, receive, send))
    assert sent[0]["status"] == 408
    assert pieces < 20
    assert app.bodies.held == 0


def test_bodies_that_wait_are_bounded_together_and_for_each_caller(monkeypatch):
    monkeypatch.setattr(request_body, "HELD_BYTES", 250)
    monkeypatch.setattr(request_body, "HELD_BYTES_PER_CALLER", 150)
    hold_on = asyncio.Event()

    async def waits_then_reads(scope, receive, send):
        await hold_on.wait()
        await echo(scope, receive, send)

    app = admitted_as(usage(waits_then_reads, queue=FairQueue(9, 9, 9)))

    async def ask():
        async with client_of(app) as client:

            def send(caller: str):
                return asyncio.create_task(client.post("/work", content=b"x" * 100, headers={"caller": caller}))

            first = send("alice")
            await asyncio.sleep(0.02)
            own = await send("alice")
            second = send("bob")
            await asyncio.sleep(0.02)
            together = await send("carol")
            hold_on.set()
            return [(await first).status_code, own.status_code, (await second).status_code, together.status_code]

    assert asyncio.run(ask()) == [200, 429, 200, 429]
    assert post(app, [b"x" * 100] * 3, caller="alice")[2].status_code == 200, "what was held was given back"


def test_the_running_server_refuses_a_body_that_is_too_long(guarded_server):
    client = guarded_server.client_with(guarded_server.keys["alice"])
    with pytest.raises(APIStatusError) as error:
        ask(client, {"type": "text", "text": "x" * 2**20})
    assert error.value.status_code == 413
    assert error.value.code == "body_too_large"

    def chunks():
        for _ in range(64):
            yield b"x" * 2**16

    reply = httpx.post(
        guarded_server.url + "/chat/completions", content=chunks(), headers=guarded_server.headers("alice")
    )
    assert reply.status_code == 413
    assert ask(client).choices, "and goes on"
