"""Each kind of failure is told from the others, and tokens are counted per event."""

import asyncio
import time

import aiohttp
import pytest

from qwen_vqa.benchmarks.load_generator.records import Record
from qwen_vqa.benchmarks.load_generator.streaming_client import Abilities, Client, Target
from tests.benchmarks.fault_server import FaultServer


def ask(url: str, model: str, tokens: int = 6, timeout: float = 5.0, abilities: Abilities | None = None) -> Record:
    """One request through the client."""

    async def run() -> Record:
        target = Target(url, None, timeout, abilities or Abilities())
        record = Record(0, 0, model, tokens, 0, False, 0.0)
        async with aiohttp.ClientSession() as session:
            body = target.body(model, [{"role": "user", "content": "hello"}], tokens)
            await Client(target, session, time.monotonic()).ask(record, body)
        return record

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("model", "kind", "detail"),
    [
        ("closes", "closed mid-stream", ""),
        ("error-event", "error event", "out of memory"),
        ("429", "http 429", "slow down"),
        ("aborts", "finish_reason abort", '"abort"'),
        ("bad-json", "bad JSON", '{"choices"'),
        ("empty", "no tokens", ""),
        ("json", "closed mid-stream", "0 events"),
    ],
)
def test_a_failure_has_its_kind(faults: FaultServer, model: str, kind: str, detail: str) -> None:
    record = ask(faults.url, model)
    assert record.error == kind
    assert detail in record.detail


def test_a_request_that_takes_too_long_is_a_timeout(faults: FaultServer) -> None:
    record = ask(faults.url, "slow", timeout=0.5)
    assert record.error == "timeout"
    assert 0.5 <= record.end < 5


def test_nobody_listening_is_a_connection_error() -> None:
    assert ask("http://127.0.0.1:9/v1", "good").error == "connection"


def test_a_good_answer_has_ordered_times_and_the_servers_token_count(faults: FaultServer) -> None:
    record = ask(faults.url, "good")
    assert record.error is None
    assert (record.output_tokens, record.prompt_tokens) == (6, 10)
    assert record.first_token and record.last_token
    assert 0 <= record.sent < record.first_token < record.last_token <= record.end


def test_an_error_that_is_null_is_none(faults: FaultServer) -> None:
    record = ask(faults.url, "null-error")
    assert (record.error, record.output_tokens) == (None, 6)


def test_tokens_that_come_together_share_their_gap(faults: FaultServer) -> None:
    record = ask(faults.url, "groups", tokens=9)
    assert [tokens for _, tokens in record.chunks] == [3, 3, 3]
    assert record.output_tokens == 9
    gap = record.chunks[1][0] - record.chunks[0][0]
    assert record.inter_token_latencies[:3] == pytest.approx([gap / 3] * 3)


def test_a_server_without_usage_is_counted_by_events(faults: FaultServer) -> None:
    record = ask(faults.url, "plain", abilities=Abilities(extensions=False))
    assert record.error is None
    assert (record.output_tokens, record.prompt_tokens) == (6, None)


def test_the_key_is_not_in_a_targets_repr() -> None:
    assert "secret" not in repr(Target("http://x/v1", "secret", 1.0))
