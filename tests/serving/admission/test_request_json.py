"""A request's JSON is parsed once, and means what Python's own parser says it means."""

import asyncio
import json
import math
import random

import pytest
from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen_vqa.serving.admission.request_json import STATE, SentJson, hand_over_json, parsed_body
from qwen_vqa.serving.errors.refusals import RefusedError
from tests.serving.asgi import admitted_as, client_of, usage

ODD = [
    *(b"1e400", b"-0", b"-0.0", b"NaN", b"-Infinity", b"5e-324", b"1E5", b"1" + b"0" * 40, b"9" * 4300, b"9" * 4301),
    *(b"inf", b"+1", b"01", b"1.", b".5", b"0x10", b"1_000", b"-", b"True", b"'a'", b"", b" ", b"{}\x00", b"{} x"),
    *(
        b'{"a":1,"a":2}',
        b'{"b":1,"a":2,"b":3}',
        b"[1,]",
        b'{"a":1,}',
        b"[1 2]",
        b"{1:2}",
        b"//x\n1",
        b"[" * 150 + b"]" * 150,
    ),
    *(b'"\x01"', b'"\n"', b'"\x7f"', b'"\\u0000"', b'"\\/"', b'"\\x41"', b'"\\u12"', b'"\xff"', b'"\xc3\xa9"'),
    *(b'"\\ud83d\\ude00"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud800\\u0041"', b'{"\\ud800":1}', b'"\xed\xa0\x80"'),
    *(b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"), '{"a": 1}'.encode("utf-32"), b"[" * 100_000),
]


def parsed(parse, body: bytes) -> str:
    try:
        return repr(parse(body))
    except (ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("body", ODD, ids=lambda body: repr(body[:20]))
def test_odd_json_is_what_pythons_parser_makes_of_it(body: bytes):
    assert parsed(lambda body: SentJson(body).content, body) == parsed(json.loads, body)


def test_numbers_are_to_the_last_bit_those_of_pythons_parser():
    dice = random.Random(0)
    numbers = [f"{dice.uniform(-1, 1) * 10.0 ** dice.randint(-320, 300):.{dice.randint(1, 30)}e}" for _ in range(5000)]
    body = f"[{','.join(numbers)}]".encode()
    assert SentJson(body).content == json.loads(body)


@pytest.mark.parametrize("body", [b'{"messages": ["\\ud800"]}', b'{"messages": ["\xed\xa0\x80"]}'])
def test_half_a_character_is_refused_however_it_is_written(body: bytes):
    with pytest.raises(RefusedError, match=r"messages\[0\]: .*half a character"):
        parsed_body(Headers({}), SentJson(body))


def test_what_is_written_anew_says_the_same():
    content = {"text": 'é "\n\u2028😀', "numbers": [1e30, 5.0, 10**400, math.inf, -0.0], "none": None, "yes": True}
    written = SentJson.holding({"state": {}}, content)
    assert json.loads(written.body) == content


def routed(path: str = "/work") -> tuple[FastAPI, list]:
    """An app whose route answers with the content that it was given, and the requests that came to it."""
    app, came = FastAPI(), []

    @app.post(path)
    async def work(content: dict, request: Request) -> dict:
        came.append(request)
        return content

    hand_over_json(app, ["/work"])
    return app, came


def send(app: ASGIApp, *bodies: bytes) -> list[dict]:
    async def ask() -> list[dict]:
        async with client_of(app) as client:
            headers = {"content-type": "application/json"}
            return [(await client.post("/work", content=body, headers=headers)).json() for body in bodies]

    return asyncio.run(ask())


def test_the_route_takes_what_the_bounds_were_checked_with_and_nobody_parses_it_again(monkeypatch):
    app, came = routed()
    times = []
    parse = SentJson.content.func
    monkeypatch.setattr(SentJson.content, "func", lambda sent: times.append(sent.body) or parse(sent))
    monkeypatch.setattr(json, "loads", lambda *args, **kwargs: pytest.fail("parsed by Python's parser"))
    bodies = [b'{"n": 1}', b'{"n": 2, "text": "\xc3\xa9"}']
    sent = []

    async def ask() -> None:
        async with client_of(admitted_as(usage(app))) as client:
            for body in bodies:
                sent.append(
                    (await client.post("/work", content=body, headers={"content-type": "application/json"})).content
                )

    asyncio.run(ask())
    assert sent == [b'{"n":1}', b'{"n":2,"text":"\xc3\xa9"}']
    assert times == bodies
    assert all("content" not in vars(request.scope["state"][STATE]) for request in came)  # it is the route's alone


def test_a_body_that_was_changed_on_its_way_is_the_one_that_counts():
    app, _ = routed()

    async def changing(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

        async def other() -> dict:
            return {"type": "http.request", "body": b'{"n": 2}', "more_body": False}

        await app(scope, other, send)

    assert send(admitted_as(usage(changing)), b'{"n": 1}') == [{"n": 2}]


def test_other_routes_parse_for_themselves():
    app = FastAPI()

    @app.post("/work")
    async def work(request: Request) -> str:
        return type(request).__name__

    hand_over_json(app, ["/elsewhere"])
    assert send(admitted_as(usage(app)), b"{}") == ["Request"]


def test_what_waits_for_its_turn_takes_no_more_memory_than_its_body():
    """The bound of what waits counts bodies."""
    let_go = asyncio.Event()
    states = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await let_go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    door = admitted_as(usage(slow))

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        states.append(scope.setdefault("state", {}))
        await door(scope, receive, send)

    async def ask() -> list[bool]:
        async with client_of(watched) as client:
            asked = [asyncio.create_task(client.post("/work", content=b'{"n": 1}')) for _ in range(5)]
            while len(states) < 5 or not all(STATE in state for state in states):
                await asyncio.sleep(0)
            for _ in range(20):
                await asyncio.sleep(0)
            held = ["content" in vars(state[STATE]) for state in states]
            let_go.set()
            assert [(await task).status_code for task in asked] == [200] * 5
            return held

    assert sorted(asyncio.run(ask())) == [False, True, True, True, True]  # four run, one waits
