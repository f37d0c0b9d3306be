"""Limits that several servers count in one Redis or Valkey database, and what becomes of them when it is gone."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.admission import shared_running
from qwen_vqa.serving.admission.fair_queue import FairQueue
from qwen_vqa.serving.admission.limits_store import LimitsStore
from qwen_vqa.serving.admission.rate_limits import RateLimits
from qwen_vqa.serving.admission.shared_running import SharedRunning
from qwen_vqa.serving.admission.usage_limits import CallerLimits
from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.observability.metrics import LIMITS_STORE_UP, LIMITS_UNCOUNTED
from tests.certificate import self_signed
from tests.limits_database import LimitsDatabase, limits_database
from tests.server import free_port
from tests.serving.admission.test_fair_queue import in_loop
from tests.serving.asgi import admitted_as, client_of, usage
from tests.vllm_copy import in_a_copy, server

PASSWORD = "p4ss-0123456789"
SOON = 3.0


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LimitsDatabase]:
    with limits_database(tmp_path_factory.mktemp("database")) as running:
        yield running


@pytest.fixture(autouse=True)
def empty(database: LimitsDatabase) -> None:
    with database.client as client:
        client.flushall()


@contextlib.asynccontextmanager
async def store(database: LimitsDatabase, unavailable="refuse") -> AsyncIterator[LimitsStore]:
    """As another server has it."""
    found = LimitsStore(database.url, unavailable)
    yield found
    await found.client.aclose()


async def refused(rates: RateLimits, *count) -> RefusedError | None:
    try:
        await rates.count(*count)
    except RefusedError as error:
        return error
    return None


async def until(condition) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_servers_that_share_a_store_share_a_callers_minute(database: LimitsDatabase):
    @in_loop
    async def test():
        async with store(database) as one, store(database) as other:
            servers = [RateLimits(one), RateLimits(other)]
            let_in = [await refused(servers[turn % 2], "requests", "alice", 5) is None for turn in range(8)]
            assert let_in == [True] * 5 + [False] * 3
            assert await refused(servers[0], "requests", "bob", 5) is None
            assert await refused(servers[1], "image_tokens", "alice", 5) is None

    test()


def test_many_at_once_get_no_more_than_the_limit(database: LimitsDatabase):
    @in_loop
    async def test():
        async with store(database) as one, store(database) as other:
            servers = [RateLimits(one), RateLimits(other)]
            answers = await asyncio.gather(*(refused(servers[i % 2], "requests", "alice", 50) for i in range(200)))
            assert answers.count(None) == 50

    test()


@pytest.mark.parametrize(("limit", "cost"), [(3, 1), (60, 1), (1000, 145)])
def test_retry_after_is_when_it_will_pass_and_not_much_before(database: LimitsDatabase, limit: int, cost: int):
    @in_loop
    async def test():
        async with store(database) as shared:
            rates = RateLimits(shared)
            for refusals in range(4):
                while (error := await refused(rates, "requests", "alice", limit, cost)) is None:
                    pass
                assert 0 < error.retry_after <= 120
                if error.retry_after > 0.4:
                    database.pass_time(error.retry_after - 0.3)
                    assert await refused(rates, "requests", "alice", limit, cost), f"{refusals}: too early"
                database.pass_time(0.31)
                assert await refused(rates, "requests", "alice", limit, cost) is None, f"{refusals}: not yet"

    test()


def test_a_servers_own_clock_does_not_matter(database: LimitsDatabase, monkeypatch: pytest.MonkeyPatch):
    @in_loop
    async def test():
        async with store(database) as one, store(database) as other:
            ours, theirs = RateLimits(one), RateLimits(other)
            assert [await refused(ours, "requests", "alice", 2) for _ in range(2)] == [None, None]
            own, real = SharedRunning(one), time.time
            assert await own.take("alice", 1, "first")
            for wrong in (-61, 61, 3600):
                monkeypatch.setattr(time, "time", lambda wrong=wrong: real() + wrong)
                error = await refused(theirs, "requests", "alice", 2)
                assert error and error.retry_after <= 120
                assert not await SharedRunning(other).take("alice", 1, "second")

    test()


def test_a_callers_places_are_those_of_all_servers(database: LimitsDatabase):
    @in_loop
    async def test():
        async with store(database) as one, store(database) as other:
            ours, theirs = SharedRunning(one), SharedRunning(other)
            assert await ours.take("alice", 2, "a") and await theirs.take("alice", 2, "b")
            assert not await ours.take("alice", 2, "c") and not await theirs.take("alice", 2, "c")
            assert await theirs.take("bob", 2, "c")
            await theirs.give_back("alice", "b")
            assert await ours.take("alice", 2, "c")

    test()


def test_places_of_a_killed_server_are_free_again_and_those_of_a_living_one_are_not(
    database: LimitsDatabase, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shared_running, "LEASE_SECONDS", 1)
    monkeypatch.setattr(shared_running, "RENEW_SECONDS", 0.2)

    async def take_once(place: str) -> bool:
        async with store(database) as one:
            return await SharedRunning(one).take("alice", 2, place)

    async def take(place: str) -> bool:
        """By a server that is killed: with its loop ends what renews."""
        return await asyncio.to_thread(asyncio.run, take_once(place))

    async def killed_and_living() -> None:
        assert await take("killed")
        async with store(database) as other:
            assert await SharedRunning(other).take("alice", 2, "living")
            assert not await take("too many")
            await asyncio.sleep(1.5)
            assert await take("the killed one's")
            assert not await take("the living one's")
            with database.client as client:
                client.flushall()
            await asyncio.sleep(0.4)
            assert await take("one") and not await take("two"), "the living one's is counted again"

    asyncio.run(killed_and_living())


def test_who_has_no_place_left_waits_for_one_in_either_server(database: LimitsDatabase):
    @in_loop
    async def test():
        ended = asyncio.Event()

        async def slow(scope, receive, send):
            if scope["path"] == "/slow":
                await ended.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        limits = CallerLimits(0, 0, running=1)
        queues = [FairQueue(running=2, waiting=4, waiting_per_caller=2) for _ in range(2)]
        async with contextlib.AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(store(database)) for _ in range(2)]
            apps = [
                admitted_as(usage(slow, limits, queue=queue, store=shared))
                for queue, shared in zip(queues, stores, strict=True)
            ]
            clients = [await stack.enter_async_context(client_of(app)) for app in apps]
            alice, bob = {"caller": "alice"}, {"caller": "bob"}
            first = asyncio.create_task(clients[0].post("/slow", headers=alice))
            await asyncio.sleep(0.1)
            waiting = [asyncio.create_task(clients[1].post("/quick", headers=alice)) for _ in range(2)]
            await asyncio.sleep(0.3)
            assert (queues[1].running, queues[1].waiting) == (0, 2), "they wait, and hold no place meanwhile"
            assert (await clients[1].post("/quick", headers=bob)).status_code == 200
            assert not any(task.done() for task in (first, *waiting))
            ended.set()
            answers = await asyncio.wait_for(asyncio.gather(first, *waiting), SOON)
            assert [answer.status_code for answer in answers] == [200, 200, 200]
            assert [(queue.running, queue.waiting) for queue in queues] == [(0, 0), (0, 0)]
            with database.client as client:
                assert not client.keys("*running*"), "nothing is held any more"

    test()


@pytest.mark.parametrize("way", ["killed", "hung"])
@pytest.mark.parametrize("unavailable", ["refuse", "allow"])
def test_a_store_that_goes_and_comes_back(
    database: LimitsDatabase, capsys: pytest.CaptureFixture[str], unavailable: str, way: str
):
    @in_loop
    async def test():
        async with store(database, unavailable) as shared:
            limits, app = CallerLimits(2, 0, running=1), None
            app = admitted_as(usage(limits=limits, store=shared))
            async with client_of(app) as client:

                async def ask():
                    return await asyncio.wait_for(client.post("/work", headers={"caller": "alice"}), SOON)

                assert (await ask()).status_code == 200
                uncounted = LIMITS_UNCOUNTED._value.get()
                database.kill() if way == "killed" else database.hang()
                answers = [await ask() for _ in range(5)]
                begun = time.monotonic()
                answers += [await ask() for _ in range(5)]
                assert time.monotonic() - begun < 0.5, "one request has waited for an answer, the others do not"
                assert LIMITS_STORE_UP._value.get() == 0
                if unavailable == "allow":
                    assert {answer.status_code for answer in answers} == {200}
                    assert LIMITS_UNCOUNTED._value.get() >= uncounted + 10
                else:
                    assert {answer.status_code for answer in answers} == {503}
                    error = answers[0].json()["error"]
                    assert (error["type"], error["code"]) == ("server_error", "limits_unavailable")
                    assert int(answers[0].headers["retry-after"]) >= 1
                    assert LIMITS_UNCOUNTED._value.get() == uncounted
                database.start() if way == "killed" else database.go_on()
                await until(lambda: LIMITS_STORE_UP._value.get() == 1)
                statuses = [(await ask()).status_code for _ in range(3)]
                assert statuses[-1] == 429 and set(statuses) <= {200, 429}, "limits count again"

    test()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert database.url in said[0] and ("503" in said[0]) == (unavailable == "refuse")
    assert database.url in said[1]


@pytest.mark.parametrize("scheme", ["redis", "valkey", "redis+unix", "valkey+unix"])
def test_the_urls_that_are_taken(tmp_path: Path, scheme: str):
    with limits_database(tmp_path, PASSWORD) as database:
        place = f"{tmp_path}/socket" if "unix" in scheme else f"127.0.0.1:{database.port}/0"
        url = f"{scheme}://:{PASSWORD}@{place}"
        asyncio.run(LimitsStore(url, "refuse").check())
        with pytest.raises(UserError, match=r"(?i)password|auth") as error:
            asyncio.run(LimitsStore(f"{scheme}://:wrong-{PASSWORD}@{place}", "refuse").check())
        assert PASSWORD not in str(error.value)


def test_a_database_behind_tls(tmp_path: Path):
    with limits_database(tmp_path, PASSWORD, self_signed(tmp_path)) as database:
        asyncio.run(LimitsStore(database.url, "refuse").check())
        with pytest.raises(UserError, match=r"(?i)certificate") as error:
            asyncio.run(LimitsStore(database.url.partition("?")[0], "refuse").check())
        assert PASSWORD not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis://",
        "redis+unix://",
        "localhost:6379",
        "memcached://localhost:11211",
        f"redis://:{PASSWORD}/x@localhost:6379",
        f"redis://:{PASSWORD}@localhost:port",
        f"redis://:{PASSWORD}@localhost:99999",
        f"redis://:{PASSWORD}@localhost:6379/zero",
        f"redis://localhost:6379?password={PASSWORD}&unknown=1",
    ],
)
def test_what_is_no_databases_url_is_refused_without_its_password(url: str):
    with pytest.raises(UserError, match="--limits-storage") as error:
        LimitsStore(url, "refuse")
    assert PASSWORD not in str(error.value)


@pytest.mark.parametrize("unavailable", ["refuse", "allow"])
def test_a_store_that_cannot_be_reached_keeps_the_server_from_starting(tiny_checkpoint: Path, unavailable: str):
    port = free_port()
    url = f"redis://:{PASSWORD}@127.0.0.1:{port}"
    run = in_a_copy(server, str(tiny_checkpoint), "--limits-storage", url, "--limits-unavailable", unavailable)
    assert run.returncode == 2
    last = run.stderr.splitlines()[-1]
    assert f"--limits-storage redis://127.0.0.1:{port} " in last
    assert PASSWORD not in run.stdout + run.stderr and "Traceback" not in run.stderr


def test_what_to_do_without_a_store_needs_one(tiny_checkpoint: Path):
    run = in_a_copy(server, str(tiny_checkpoint), "--limits-unavailable", "allow")
    assert run.returncode == 2
    assert "--limits-storage" in run.stderr.splitlines()[-1]
