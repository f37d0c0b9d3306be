"""Two real servers that count in one database: a key's limits are one, also when the database is killed meanwhile."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import InternalServerError, OpenAI, RateLimitError

from tests.limits_database import LimitsDatabase, limits_database
from tests.server import Server, serving
from tests.serving.asgi import ask, image_part

LIMITS: dict[str, dict] = {
    "five-a-minute": {"requests_per_minute": 5},
    "two-images-a-minute": {"image_tokens_per_minute": 10},
    "one-at-once": {"running": 1},
    "three-a-minute": {"requests_per_minute": 3},
    "unlimited": {},
}
PASSWORD = "p4ss-0123456789"
SOON = 5


@dataclass(frozen=True)
class Pair:
    """One refuses while the database is away, the other lets requests through."""

    refusing: Server
    allowing: Server
    database: LimitsDatabase

    def clients(self, name: str) -> list[OpenAI]:
        """Of both, with this key."""
        return [
            OpenAI(base_url=server.url, api_key=f"{name}-secret-0123456789", max_retries=0, timeout=60)
            for server in (self.refusing, self.allowing)
        ]

    def metric(self, server: Server, name: str) -> float:
        """Its value at the server's /metrics."""
        address = f"{server.url.removesuffix('/v1')}/metrics"
        headers = {"Authorization": "Bearer unlimited-secret-0123456789"}
        lines = httpx.get(address, headers=headers).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def pair(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    entries = [{"name": name, "key": f"{name}-secret-0123456789", **limits} for name, limits in LIMITS.items()]
    (folder / "keys.json").write_text(json.dumps({"keys": entries}))
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(limits_database(folder, PASSWORD))
        flags = [str(tiny_checkpoint), "--served-model-name", "tiny", "--api-keys-file", str(folder / "keys.json")]
        flags += ["--limits-storage", database.url]
        refusing = stack.enter_context(serving(folder / "refusing.log", *flags))
        allowing = stack.enter_context(serving(folder / "allowing.log", *flags, "--limits-unavailable", "allow"))
        yield Pair(refusing, allowing, database)


def test_a_keys_requests_are_counted_together(pair: Pair):
    clients = pair.clients("five-a-minute")
    for turn in range(5):
        ask(clients[turn % 2])
    for client in clients:
        with pytest.raises(RateLimitError) as error:
            ask(client)
        assert error.value.code == "rate_limit_exceeded"
        assert 1 <= int(error.value.response.headers["retry-after"]) <= 120


def test_a_keys_image_tokens_are_counted_together(pair: Pair):
    one, other = pair.clients("two-images-a-minute")
    ask(one, image_part())
    ask(other, image_part())
    with pytest.raises(RateLimitError) as error:
        ask(one, image_part())
    assert error.value.type == "tokens"


def test_a_key_with_one_place_waits_for_its_stream_at_the_other_server(pair: Pair):
    one, other = pair.clients("one-at-once")
    stream = ask(one, max_tokens=600, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    answers: list = []
    second = threading.Thread(target=lambda: answers.append(ask(other)))
    second.start()
    time.sleep(0.5)
    assert not answers
    stream.close()
    second.join(timeout=30)
    assert len(answers) == 1


def test_a_database_that_is_killed_and_started_again(pair: Pair):
    refusing, allowing = pair.clients("three-a-minute")
    for client in (refusing, allowing, allowing):
        ask(client)
    pair.database.kill()
    for _ in range(5):
        ask(allowing)
        with pytest.raises(InternalServerError) as error:
            ask(refusing)
        assert error.value.status_code == 503
        assert (error.value.code, error.value.type) == ("limits_unavailable", "server_error")
        assert int(error.value.response.headers["retry-after"]) >= 1
    for client in pair.clients("unlimited"):
        ask(client)
    assert pair.metric(pair.refusing, 'qwen_vqa_refused_total{reason="limits_unavailable"}') == 5
    assert pair.metric(pair.allowing, "qwen_vqa_limits_uncounted_total") == 5
    for server in (pair.refusing, pair.allowing):
        assert pair.metric(server, "qwen_vqa_limits_store_up") == 0
    pair.database.start()
    deadline = time.monotonic() + SOON
    while not all(pair.metric(server, "qwen_vqa_limits_store_up") for server in (pair.refusing, pair.allowing)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for client in (refusing, allowing, allowing):  # what the database had counted, it has lost
        ask(client)
    for client in (refusing, allowing):
        with pytest.raises(RateLimitError):
            ask(client)
    for server in (pair.refusing, pair.allowing):
        lines = [line for line in server.log.read_text().splitlines() if "limits' store" in line]
        assert ["503" in line for line in lines] == [server is pair.refusing, False], "once gone, once back"
        assert PASSWORD not in server.log.read_text()
