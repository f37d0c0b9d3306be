"""What the running server lets its operator see, and what it does not."""

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai import BadRequestError
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.asgi import ask, image_part

SECRET_WORDS = "a-secret-that-only-the-prompt-holds"


def lines(server) -> list[dict]:
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith('{"time"')]


def request_line(server, name: str) -> dict:
    """The line of the request with this id; it is written a moment after the answer's end."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for line in lines(server):
            if line.get("id") == name:
                return line
        time.sleep(0.05)
    raise AssertionError(f"no line for {name}")


def metric(server, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    text = httpx.get(f"{server.address}/metrics", headers=server.headers("alice")).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def growth(server, name: str, what: Callable[[], object], **labels: str) -> float:
    before = metric(server, name, **labels)
    what()
    deadline = time.monotonic() + 10
    while (after := metric(server, name, **labels)) == before and time.monotonic() < deadline:
        time.sleep(0.05)
    return after - before


def alice(server):
    return server.client_with(server.keys["alice"])


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_is_one_line_with_what_it_was_and_not_what_it_said(guarded_server, streamed: bool):
    name = f"watched-{streamed}"
    text = {"type": "text", "text": SECRET_WORDS}
    answer = ask(
        alice(guarded_server), image_part(), text, max_tokens=3, stream=streamed, extra_headers={"X-Request-Id": name}
    )
    if streamed:
        list(answer)
    line = request_line(guarded_server, name)
    assert {key: line[key] for key in ("kind", "method", "route", "status", "key", "model", "images")} == {
        "kind": "request",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "key": "alice",
        "model": "tiny",
        "images": 1,
    }
    assert line["refused"] is None
    assert line["output_tokens"] == 3 and line["prompt_tokens"] > 5
    assert 0 <= line["queue_seconds"] < line["seconds"]
    written = guarded_server.log.read_text()
    assert SECRET_WORDS not in written
    assert guarded_server.keys["alice"] not in written
    assert "base64" not in written


def test_the_clients_id_comes_back_and_is_vllms_too(guarded_server):
    raw = alice(guarded_server).chat.completions.with_raw_response.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=1,
        extra_headers={"X-Request-Id": "my-id.7"},
    )
    assert raw.headers["x-request-id"] == "my-id.7"
    assert raw.parse().id == "chatcmpl-my-id.7"


@pytest.mark.parametrize("name", [None, "", "two words", "x" * 129, 'quote"', "ümlaut", "a\tb"])
def test_without_a_sane_id_one_is_made(guarded_server, name: str | None):
    headers = [] if name is None else [(b"x-request-id", name.encode())]
    reply = httpx.get(f"{guarded_server.address}/health", headers=headers)
    assert re.fullmatch(r"[0-9a-f]{32}", reply.headers["x-request-id"])


def test_two_requests_at_once_may_have_the_same_id(guarded_server):
    def one(_: int):
        more = {"extra_headers": {"X-Request-Id": "twin"}, "extra_body": {"ignore_eos": True}}
        return ask(alice(guarded_server), max_tokens=30, **more)

    with ThreadPoolExecutor(2) as pool:
        assert [answer.usage.completion_tokens for answer in pool.map(one, range(2))] == [30, 30]


def test_a_refusal_has_its_reason_in_line_and_metric(guarded_server):
    def without_key() -> None:
        headers = {"X-Request-Id": "no-key"}
        assert httpx.get(f"{guarded_server.url}/models", headers=headers).status_code == 401

    assert growth(guarded_server, "qwen_vqa_refused_total", without_key, reason="invalid_api_key") == 1
    line = request_line(guarded_server, "no-key")
    assert (line["status"], line["refused"], line["key"]) == (401, "invalid_api_key", None)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "image"),
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}, "image"),
        ({"type": "video_url", "video_url": {"url": "data:,"}}, "content"),
    ],
)
def test_refused_content_is_counted_by_what_it_was(guarded_server, part: dict, reason: str):
    def send() -> None:
        with pytest.raises(BadRequestError):
            ask(alice(guarded_server), part)

    assert growth(guarded_server, "qwen_vqa_refused_total", send, reason=reason) == 1


def test_garbage_is_collected_once_all_is_imported(guarded_server):
    """The process imports without it; were it never turned on, memory would grow with every request."""

    def some() -> None:  # seven leave enough behind
        for _ in range(40):
            ask(alice(guarded_server))

    assert growth(guarded_server, "python_gc_collections_total", some, generation="0") > 0


def test_images_are_measured(guarded_server):
    names = ("qwen_vqa_image_tokens_total", "qwen_vqa_image_decode_seconds_count")
    before = [metric(guarded_server, name) for name in names]
    fetched = metric(guarded_server, "qwen_vqa_image_fetch_seconds_count", source="data")
    ask(alice(guarded_server), image_part(), image_part())
    tokens, decoded = (metric(guarded_server, name) - was for name, was in zip(names, before, strict=True))
    assert tokens == 2 * 5
    assert decoded == 2
    assert metric(guarded_server, "qwen_vqa_image_fetch_seconds_count", source="data") == fetched + 2


def test_what_a_client_writes_becomes_no_label(guarded_server):
    for path in ("/some/unknown-path-1", "/v1/models/unknown-path-2"):
        httpx.get(guarded_server.address + path, headers=guarded_server.headers("alice"))
    httpx.request("BREW", f"{guarded_server.url}/models", headers=guarded_server.headers("alice"))
    text = httpx.get(f"{guarded_server.address}/metrics", headers=guarded_server.headers("alice")).text
    ours = "\n".join(line for line in text.splitlines() if line.startswith("qwen_vqa_"))
    assert "unknown-path" not in ours and "BREW" not in ours
    assert metric(guarded_server, "qwen_vqa_requests_total", route="other", status="404") >= 1


def test_every_line_of_the_log_is_json(guarded_server):
    alice(guarded_server).models.list()
    ours = [line for line in guarded_server.log.read_text().splitlines() if "qwen-vqa" in line or "GET " in line]
    assert [line for line in ours if not line.startswith("{")] == []


def test_a_trace_goes_on_in_vllms_spans(guarded_server, trace_collector):
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "X-Request-Id": "traced"}
    ask(alice(guarded_server), max_tokens=2, extra_headers=headers)
    assert request_line(guarded_server, "traced")["trace_id"] == trace
    spans = trace_collector.spans_of(trace, seconds=30)
    assert "llm_request" in {span.name for span in spans}
    attributes = {attribute.key: attribute.value for span in spans for attribute in span.attributes}
    assert attributes["gen_ai.usage.completion_tokens"].int_value == 2
    assert attributes["gen_ai.request.id"].string_value.startswith("chatcmpl-traced")
