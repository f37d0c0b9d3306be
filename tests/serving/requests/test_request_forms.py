"""Forms in which clients send requests, beside the one that vLLM takes; and bodies that are no requests."""

import gzip
import json

import httpx
import pytest

from qwen_vqa.serving.requests.request_forms import FORMS, chat_forms, responses_forms
from qwen_vqa.serving.requests.request_images import CHECKS
from tests.server import Server
from tests.serving.test_api import data_url
from tests.tiny import picture

PICTURE = data_url(picture(5))
HELLO = {"role": "user", "content": "hello"}
JSON = {"content-type": "application/json"}


def post(server: Server, path: str, body: dict | bytes, headers: dict | None = None) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.url}{path}", content=content, headers={**JSON, **(headers or {})}, timeout=120)


def chat(server: Server, *messages: dict, **options) -> dict:
    body = {"model": "tiny", "max_tokens": 4, "temperature": 0, "messages": list(messages) or [HELLO], **options}
    answer = post(server, "/chat/completions", body)
    assert answer.status_code == 200, answer.text
    return {
        "text": answer.json()["choices"][0]["message"]["content"],
        "prompt": answer.json()["usage"]["prompt_tokens"],
    }


def respond(server: Server, *items: dict, **options) -> dict:
    body = {"model": "tiny", "max_output_tokens": 4, "temperature": 0, "input": list(items), **options}
    answer = post(server, "/responses", body)
    assert answer.status_code == 200, answer.text
    return {"text": answer.json()["output"][0]["content"][0]["text"], "prompt": answer.json()["usage"]["input_tokens"]}


DETAILS = [{"detail": "original"}, {"detail": "high"}, {"detail": None}, {"detail": "auto"}]


def test_every_detail_that_clients_send_is_taken(tiny_server: Server):
    def asked(**detail) -> dict:
        image = {"type": "image_url", "image_url": {"url": PICTURE, **detail}}
        return chat(tiny_server, {"role": "user", "content": [image, {"type": "text", "text": "what?"}]})

    assert [asked(**detail) for detail in DETAILS] == [asked()] * len(DETAILS)


def test_and_in_responses_also_none(tiny_server: Server):
    def asked(**detail) -> dict:
        image = {"type": "input_image", "image_url": PICTURE, **detail}
        return respond(tiny_server, {"role": "user", "content": [image, {"type": "input_text", "text": "what?"}]})

    def looked(**detail) -> dict:
        call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}
        output = [{"type": "input_image", "image_url": PICTURE, **detail}]
        result = {"type": "function_call_output", "call_id": "1", "output": output}
        return respond(tiny_server, HELLO, call, result)

    assert [asked(**detail) for detail in DETAILS] == [asked()] * len(DETAILS)
    assert [looked(**detail) for detail in DETAILS] == [looked()] * len(DETAILS)


def test_original_is_high_and_what_is_as_vllm_takes_it_stays():
    image = {"type": "image_url", "image_url": {"url": PICTURE, "detail": "original"}}
    body = {"messages": [{"role": "user", "content": [image]}]}
    assert chat_forms(body)
    assert body["messages"][0]["content"][0]["image_url"]["detail"] == "high"
    assert not chat_forms(body)
    part = {"type": "image_url", "image_url": {"url": PICTURE, "detail": None}}
    batch = {"messages": [[HELLO], [{"role": "user", "content": [part]}]]}
    assert chat_forms(batch)
    assert "detail" not in part["image_url"]
    body = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}]}
    assert responses_forms(body)
    assert body["input"][0]["content"][0]["detail"] == "auto"
    assert not responses_forms(body)


def test_an_earlier_answer_without_its_type_is_taken(tiny_server: Server):
    parts = [{"type": "output_text", "text": "Hello! Ask me."}]
    named = respond(tiny_server, HELLO, {"type": "message", "role": "assistant", "content": parts}, HELLO)
    assert respond(tiny_server, HELLO, {"role": "assistant", "content": parts}, HELLO) == named
    assert respond(tiny_server, HELLO, {"role": "assistant", "id": "msg_1", "content": parts}, HELLO) == named
    assert respond(tiny_server, HELLO, {"role": "assistant", "content": parts[0]["text"]}, HELLO) == named


@pytest.mark.parametrize("kind", [{}, {"type": "message"}])
def test_all_parts_of_an_earlier_answer_are_read(kind: dict, tiny_server: Server):
    def asked(*texts: str) -> dict:
        parts = [{"type": "output_text", "text": text} for text in texts]
        return respond(tiny_server, HELLO, {**kind, "role": "assistant", "content": parts}, HELLO)

    assert asked("Hello!", " Ask me.") == asked("Hello! Ask me.")
    assert asked("Hello!", " Ask me.")["prompt"] > asked("Hello!")["prompt"]


def test_a_refusal_is_what_the_model_said(tiny_server: Server):
    said = chat(tiny_server, HELLO, {"role": "assistant", "content": "No."}, HELLO)
    for content in (None, ""):
        answer = {"role": "assistant", "content": content, "refusal": "No."}
        assert chat(tiny_server, HELLO, answer, HELLO) == said


def test_no_tools_are_as_none_unless_one_is_forced(tiny_server: Server):
    assert chat(tiny_server, tools=[]) == chat(tiny_server)
    assert chat(tiny_server, tools=[], tool_choice="auto", parallel_tool_calls=True) == chat(tiny_server)
    assert respond(tiny_server, HELLO, tools=[], tool_choice="auto") == respond(tiny_server, HELLO)
    for choice in ("required", {"type": "function", "function": {"name": "look"}}):
        body = {"model": "tiny", "messages": [HELLO], "tools": [], "tool_choice": choice}
        answer = post(tiny_server, "/chat/completions", body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    body = {"model": "tiny", "max_tokens": 4, "messages": [HELLO], "tools": []}
    assert post(tiny_server, "/messages", body).status_code == 200


@pytest.mark.parametrize("kind", ["json", "regex", "choice", "grammar"])
def test_guided_answers_of_old_are_sent_to_structured_outputs(kind: str, tiny_server: Server):
    asks = {
        "/chat/completions": {"messages": [HELLO]},
        "/completions": {"prompt": "hello"},
        "/responses": {"input": "hello"},
    }
    for path, ask in asks.items():
        error = post(tiny_server, path, {"model": "tiny", **ask, f"guided_{kind}": "a"}).json()["error"]
        assert error["param"] == f"guided_{kind}"
        assert f'structured_outputs: {{"{kind}": ...}}' in error["message"]


def test_every_route_that_takes_messages_takes_their_forms():
    without = {"/v1/completions", "/v1/completions/render"}
    assert set(FORMS) == set(CHECKS) - without


def test_a_reference_to_an_item_is_sent_away_with_advice(tiny_server: Server):
    reference = {"type": "item_reference", "id": "msg_1"}
    error = post(tiny_server, "/responses", {"model": "tiny", "input": [HELLO, reference]}).json()["error"]
    assert error["param"] == "input[1]"
    assert "send the item itself" in error["message"]


GOOD = json.dumps({"model": "tiny", "max_tokens": 1, "messages": [HELLO]}).encode()


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses", "/messages"])
@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (gzip.compress(GOOD), {"content-encoding": "gzip"}, 415, "the body is encoded as 'gzip'"),
        (GOOD, {"content-encoding": "deflate"}, 415, "send it without Content-Encoding"),
        (GOOD, {"content-type": "text/plain"}, 415, "say application/json"),
        (GOOD.replace(b"hello", b"h\xffllo"), {}, 400, "the body is not UTF-8: byte 0xff at"),
        (GOOD[:-1], {}, 400, "the body is not JSON"),
        (b"", {}, 400, "the body is not JSON"),
        (b"[" * 100_000, {}, 400, "nested too deeply"),
        (GOOD.replace(b"hello", b"\\ud800"), {}, 400, "messages[0].content: a text with half a character"),
        (GOOD.replace(b"hello", b"\\udc00\\ud800"), {}, 400, "messages[0].content: a text with half a character"),
    ],
)
def test_a_body_that_is_no_request_is_said(
    body: bytes, headers: dict, status: int, words: str, path: str, tiny_server: Server
):
    answer = post(tiny_server, path, body, headers)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_whole_character_in_two_halves_is_one(tiny_server: Server):
    answer = post(tiny_server, "/chat/completions", GOOD.replace(b"hello", b"\\ud83d\\ude00"))
    assert answer.status_code == 200
