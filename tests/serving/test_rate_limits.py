"""How much a caller may use: counted by the minute, bounded in each request."""

import asyncio
import base64
import io
import itertools
import json
import re
import time

import httpx
import pytest
from openai import APIStatusError, BadRequestError, RateLimitError

from qwen_vqa.serving import request_body
from qwen_vqa.serving.fair_queue import FairQueue
from qwen_vqa.serving.rate_limits import RateLimits
from qwen_vqa.serving.refusals import RefusedError
from qwen_vqa.serving.request_bounds import RequestBounds
from qwen_vqa.serving.usage import CallerLimits, UsageMiddleware
from tests.serving.asgi import admitted_as, client_of, echo
from tests.tiny import picture

NO_LIMITS = CallerLimits(requests_per_minute=0, image_tokens_per_minute=0, running=0)
BOUNDS = RequestBounds(images=4, answers=3, output_tokens=600)


def usage(app=echo, limits: CallerLimits = NO_LIMITS, **options) -> UsageMiddleware:
    settings = {
        "bounds": BOUNDS,
        "queue": FairQueue(running=4, waiting=4, waiting_per_caller=2),
        "tokens_per_image": 5,
        "max_body_bytes": 1000,
        "wait_seconds": 5,
    }
    return UsageMiddleware(app, limits, **{**settings, **options})


class Clock:
    """The time as `limits` and we read it, moved by hand."""

    def __init__(self, monkeypatch):
        self.now = 6_000_000.0  # the start of a minute
        monkeypatch.setattr(time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def refused(rates: RateLimits, *count) -> RefusedError | None:
    try:
        rates.count(*count)
    except RefusedError as error:
        return error
    return None


def test_so_many_a_minute_and_no_more(clock: Clock):
    rates = RateLimits()
    assert [refused(rates, "requests", "alice", 3) is None for _ in range(5)] == [True, True, True, False, False]
    assert refused(rates, "requests", "bob", 3) is None, "each caller has their own"
    clock.now += 130
    assert refused(rates, "requests", "alice", 3) is None


@pytest.mark.parametrize("at", [0.5, 20, 59.5])
@pytest.mark.parametrize(("limit", "cost"), [(3, 1), (60, 1), (1000, 145), (1000, 1000)])
def test_retry_after_is_when_it_will_pass_and_not_much_before(clock: Clock, at: float, limit: int, cost: int):
    rates = RateLimits()
    clock.now += at
    for refusals in range(5):
        while (error := refused(rates, "requests", "alice", limit, cost)) is None:
            pass
        assert error.retry_after > 0
        moment = clock.now
        clock.now = moment + error.retry_after - 0.1
        if error.retry_after > 0.2:
            assert refused(rates, "requests", "alice", limit, cost), f"{refusals}: too early"
        clock.now = moment + error.retry_after + 0.01
        assert refused(rates, "requests", "alice", limit, cost) is None, f"{refusals}: not yet"


def test_a_cost_above_the_limit_is_no_matter_of_waiting(clock: Clock):
    error = refused(RateLimits(), "image_tokens", "alice", 10, 15)
    assert error.status == 400
    assert error.retry_after is None
    assert "image tokens are 15; 10 a minute" in error.message


def test_no_limit_counts_nothing():
    rates = RateLimits()
    assert all(refused(rates, "requests", "alice", 0) is None for _ in range(1000))


def image(**fields) -> dict:
    return {"type": "image_url", "image_url": {"url": "data:,"}, **fields}


@pytest.mark.parametrize(
    ("request_body", "images"),
    [
        ({"messages": [{"role": "user", "content": "image_url"}]}, 0),
        ({"messages": [{"role": "user", "content": [image(), {"type": "text", "text": "a"}, image()]}]}, 2),
        ({"messages": [{"role": "user", "content": [{"image_url": "data:,"}]}]}, 1),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, 1),
        ({"input": "text"}, 0),
        (
            {
                "messages": [
                    {"content": [{"type": "tool_result", "content": [{"type": "image", "source": {"data": ""}}]}]}
                ]
            },
            1,
        ),
        ({"messages": [[{"content": [image()]}], [{"content": [image()]}]]}, 2),
        ({"messages": [], "tools": [{"function": {"parameters": {"properties": {"image_url": {}}}}}]}, 0),
        ({"messages": "nonsense", "input": 3}, 0),
        ([1, 2], 0),
    ],
)
def test_images_are_counted_wherever_the_apis_have_them(request_body, images: int):
    assert BOUNDS.check(json.dumps(request_body).encode()) == images


@pytest.mark.parametrize(
    ("request_body", "named"),
    [
        ({"messages": [{"content": [image()] * 5}]}, r"5 images; .* at most 4 \(--max-images\)"),
        ({"n": 4}, r"n is 4; .* at most 3 \(--max-n\)"),
        ({"n": "4"}, "n is 4"),
        ({"n": 4.0}, "n is 4"),
        ({"best_of": 9}, "n is 9"),
        ({"prompt": ["a", "b"], "n": 2}, "n is 4"),
        ({"prompt": [[1, 2], [3], [4], [5]]}, "n is 4"),
        ({"max_tokens": 601}, r"max_tokens is 601; .* at most 600 \(--max-output-tokens\)"),
        ({"max_completion_tokens": 1e30}, "max_completion_tokens is 1"),
        ({"max_tokens": 10**400}, "max_tokens is 1000"),
        ({"max_output_tokens": 601}, "max_output_tokens is 601"),
        ({"background": True}, "background is not served"),
    ],
)
def test_more_than_a_bound_is_400_with_the_bound_named(request_body: dict, named: str):
    with pytest.raises(RefusedError) as error:
        BOUNDS.check(json.dumps(request_body).encode())
    assert error.value.status == 400
    assert error.value.param
    assert re.search(named, error.value.message)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b'{"n": null, "max_tokens": null, "prompt": null}',
        b'{"n": 3, "max_tokens": 600, "prompt": [1, 2, 3, 4, 5]}',
        b'{"n": -1, "max_tokens": "many", "messages": {}}',
        b'{"n": NaN, "max_tokens": []}',
    ],
)
def test_what_is_within_bounds_or_the_routes_own_to_refuse_passes(body: bytes):
    assert BOUNDS.check(body) == 0


def test_json_nested_too_deeply_is_refused():
    with pytest.raises(RefusedError, match="nested too deeply"):
        BOUNDS.check(b"[" * 200_000)


def post(app, bodies, caller: str | None = None, **client_options) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        headers = {"caller": caller} if caller else {}
        async with client_of(app, **client_options) as client:
            return [await client.post("/work", content=body, headers=headers) for body in bodies]

    return asyncio.run(ask())


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


def test_keys_have_their_own_limits_and_without_keys_addresses_have():
    app = usage(limits=CallerLimits(2, 0, 0))
    statuses = [reply.status_code for reply in post(admitted_as(app), [b""] * 3, address="192.0.2.1")]
    assert statuses == [200, 200, 429]
    assert post(admitted_as(app), [b""], address="192.0.2.2")[0].status_code == 200
    assert [reply.status_code for reply in post(admitted_as(app), [b""] * 3, caller="alice")] == [200, 200, 429]
    own = admitted_as(app, requests_per_minute=0)
    assert [reply.status_code for reply in post(own, [b""] * 9, caller="bob")] == [200] * 9


def test_an_ipv6_caller_is_its_network_and_a_mapped_address_the_ipv4_one():
    app = usage(limits=CallerLimits(1, 0, 0))

    def status(address: str) -> int:
        return post(admitted_as(app), [b""], address=address)[0].status_code

    assert [status("2001:db8::1"), status("2001:db8::2"), status("2001:db8:0:1::1")] == [200, 429, 200]
    assert [status("192.0.2.7"), status("::ffff:192.0.2.7")] == [200, 429]


def test_images_cost_their_tokens():
    app = admitted_as(usage(limits=CallerLimits(0, 10, 0), max_body_bytes=10_000))
    one = json.dumps({"messages": [{"content": [image()]}]}).encode()
    three = json.dumps({"messages": [{"content": [image()] * 3}]}).encode()
    replies = post(app, [one, one, b"{}", one, three], caller="alice")
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 400]
    error = replies[3].json()["error"]
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert 1 <= int(replies[3].headers["retry-after"]) <= 120


# The same, from the SDK to the running server.


def ask(client, *content, **options):
    messages = [{"role": "user", "content": list(content) or "hi"}]
    return client.chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 2, **options})


def image_part() -> dict:
    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def test_the_running_server_limits_requests(guarded_server):
    client = guarded_server.client_with(guarded_server.keys["three-a-minute"])
    for _ in range(3):
        ask(client)
    with pytest.raises(RateLimitError) as error:
        ask(client)
    assert error.value.code == "rate_limit_exceeded"
    assert error.value.type == "requests"
    assert 1 <= int(error.value.response.headers["retry-after"]) <= 120
    assert client.models.list().data, "what does no work is not counted"
    ask(guarded_server.client_with(guarded_server.keys["alice"]))


def test_the_running_server_limits_image_tokens(guarded_server):
    client = guarded_server.client_with(guarded_server.keys["two-images-a-minute"])
    ask(client, image_part(), image_part())
    with pytest.raises(RateLimitError) as error:
        ask(client, image_part())
    assert error.value.type == "tokens"
    ask(client)
    with pytest.raises(BadRequestError, match="image tokens are 15; 10 a minute"):
        ask(client, image_part(), image_part(), image_part())


def test_the_running_server_names_its_bounds(guarded_server):
    client = guarded_server.client_with(guarded_server.keys["alice"])
    with pytest.raises(BadRequestError, match="at most 4"):
        ask(client, *[image_part()] * 5)
    with pytest.raises(BadRequestError, match="n is 4"):
        ask(client, n=4)
    with pytest.raises(BadRequestError, match="max_tokens is 601"):
        ask(client, max_tokens=601)
    with pytest.raises(BadRequestError, match="max_output_tokens is 601"):
        client.responses.create(model="tiny", input="hi", max_output_tokens=601)
    assert len(ask(client, n=3).choices) == 3
    unbounded = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        extra_body={"ignore_eos": True},
    )
    assert unbounded.usage.completion_tokens == 600, "a request that names no max_tokens gets the bound"


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
