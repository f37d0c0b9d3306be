"""How much a caller may use in a minute: requests, and image tokens."""

import asyncio
import json
import time

import pytest
from openai import BadRequestError, RateLimitError

from qwen_vqa.serving.admission.rate_limits import RateLimits
from qwen_vqa.serving.admission.usage_limits import CallerLimits
from qwen_vqa.serving.errors.refusals import RefusedError
from tests.serving.asgi import admitted_as, ask, image, image_part, post, usage


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
        asyncio.run(rates.count(*count))
    except RefusedError as error:
        return error
    return None


@pytest.mark.parametrize("jump", [-86_400, -3600, -61, -30, 30, 61, 3600, 86_400])
def test_a_clock_that_jumps_locks_nobody_out_and_gives_at_most_another_minutes_worth(clock: Clock, jump: int):
    rates = RateLimits()
    clock.now += 10
    let_in = sum(refused(rates, "requests", "alice", 5) is None for _ in range(10))
    clock.now += jump
    refusals = [refused(rates, "requests", "alice", 5) for _ in range(10)]
    assert let_in + refusals.count(None) <= 10
    assert all(refusal.retry_after <= 120 for refusal in refusals if refusal)
    clock.now += 120
    assert refused(rates, "requests", "alice", 5) is None


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


def test_a_request_costs_no_look_at_all_other_callers():
    async def seconds(others: int) -> float:
        rates = RateLimits()
        for number in range(others):
            await rates.count("requests", f"address {number}", 5)
        begun = time.perf_counter()
        for _ in range(1000):
            await rates.count("requests", "alice", 10_000)
            await asyncio.sleep(0)  # for what a storage may have put off
        return time.perf_counter() - begun

    alone = min(asyncio.run(seconds(0)) for _ in range(2))
    assert asyncio.run(seconds(20_000)) < 20 * alone, "with the asyncio storage of the library it is 200 times as long"


def test_no_limit_counts_nothing():
    rates = RateLimits()
    assert all(refused(rates, "requests", "alice", 0) is None for _ in range(1000))


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


def test_images_in_low_detail_cost_those_of_one_view():
    app = admitted_as(usage(limits=CallerLimits(0, 10, 0), max_body_bytes=10_000))
    low = {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}
    four = json.dumps({"messages": [{"content": [low] * 4}]}).encode()  # 2 each
    assert [reply.status_code for reply in post(app, [four, four], caller="alice")] == [200, 429]


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
