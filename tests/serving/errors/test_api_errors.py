"""Errors in one shape: OpenAI's with the field at fault and words of ours, Anthropic's on /v1/messages."""

import json

import anthropic
import httpx
import pytest
from openai import BadRequestError, NotFoundError

from qwen_vqa.serving.errors.validation_errors import refusal_of
from tests.server import Server
from tests.serving.conftest import GuardedServer

HELLO = {"role": "user", "content": "hello"}
# The words of pydantic and of Python, which say nothing to who wrote the request.
INTERNAL = ("validation error", "Input should", "'loc'", "NoneType", "TextEncodeInput", "parameter=", "pydantic")


def ask(server: Server, path: str, body: object) -> tuple[int, dict]:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    return answer.status_code, answer.json()


CHAT_FAULTS = [
    ({"n": 0}, "n", "n must be at least 1"),
    ({"n": "x"}, "n", "n: expected a whole number; got 'x'."),
    ({"stop": [""]}, "stop", "stop cannot contain an empty string"),
    ({"stop": 5}, "stop", "stop: expected text or a list; got 5."),
    ({"temperature": -1}, "temperature", "temperature must be non-negative, got -1.0."),
    ({"temperature": "hot"}, "temperature", "temperature: expected a number; got 'hot'."),
    ({"top_p": 2}, "top_p", "top_p must be in"),
    ({"max_tokens": "a"}, "max_tokens", "max_tokens: expected a whole number; got 'a'."),
    ({"stream": "maybe"}, "stream", "stream: expected true or false; got 'maybe'."),
    ({"seed": 2**70}, "seed", "seed: it must be at most 9223372036854775807; got 1180591620717411303424."),
    ({"messages": "x"}, "messages", "messages: expected a list; got 'x'."),
    ({"messages": None}, "messages", "messages: null; expected a list of messages."),
    ({"tools": 5}, "tools", "tools: expected a list; got 5."),
    ({"tools": [{"type": "x"}]}, "tools[0].type", "tools[0].type: expected 'function'; got 'x'."),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "tools[0].function: it is missing."),
    (
        {"response_format": {"type": "xml"}},
        "response_format.type",
        "response_format.type: expected 'text' or 'json_object' or 'json_schema' or 'structural_tag'; got 'xml'.",
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format", "the 'json_schema' field must be provided"),
    ({"tool_choice": "required"}, "tool_choice", "`tools` must be set"),
    ({"structured_outputs": {"json": 5}}, "structured_outputs.json", "expected text or an object; got 5."),
    ({"user": 5}, "user", "user: expected text; got 5."),
]


@pytest.mark.parametrize(("options", "param", "words"), CHAT_FAULTS)
def test_a_fault_is_said_with_its_field(options: dict, param: str, words: str, tiny_server: Server):
    status, answer = ask(tiny_server, "/chat/completions", {"model": "tiny", "messages": [HELLO], **options})
    error = answer["error"]
    assert (status, error["type"], error["param"], error["code"]) == (400, "invalid_request_error", param, None)
    assert words in error["message"]
    assert not [word for word in INTERNAL if word in error["message"]]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/chat/completions", {"model": "tiny"}, "messages"),
        ("/chat/completions", [], None),
        ("/completions", {"model": "tiny", "prompt": {"a": 1}}, "prompt"),
        ("/responses", {"model": "tiny", "input": 5}, "input"),
        ("/responses", {"model": "tiny", "input": [HELLO, {"type": "banana"}]}, "input[1].type"),
        ("/responses", {"model": "tiny", "input": [HELLO, {"type": "function_call_output", "output": 5}]}, "input[1]"),
        ("/responses", {"model": "tiny", "input": "hi", "reasoning": {"effort": "x"}}, "reasoning.effort"),
        ("/responses", {"model": "tiny", "input": "hi", "tools": [{"type": "function", "name": 5}]}, "tools[0].name"),
    ],
)
def test_hundreds_of_forms_that_did_not_fit_are_one_sentence(path: str, body: object, param: str, tiny_server: Server):
    status, answer = ask(tiny_server, path, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert len(answer["error"]["message"]) < 400
    assert not [word for word in INTERNAL if word in answer["error"]["message"]]


def test_an_unknown_model_is_told_all_there_are(tiny_server: Server):
    with pytest.raises(NotFoundError) as error:
        tiny_server.client.chat.completions.create(model="y" * 20_000, messages=[HELLO])
    assert (error.value.param, error.value.code) == ("model", "model_not_found")
    assert "There are: tiny, tiny-lora." in error.value.message
    assert len(error.value.message) < 400
    for path, body in {"/responses": {"input": "hi"}, "/completions": {"prompt": "hi"}}.items():
        status, answer = ask(tiny_server, path, {"model": "nobody", **body})
        assert status == 404
        assert answer["error"]["message"] == "The model `nobody` does not exist. There are: tiny, tiny-lora."


def anthropic_client(server: Server, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url.removesuffix("/v1"), auth_token=key, max_retries=0)


def test_anthropics_sdk_finds_its_own_errors(tiny_server: Server):
    client = anthropic_client(tiny_server)
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="nobody", max_tokens=1, messages=[HELLO])
    assert unknown.value.body["error"]["type"] == "not_found_error"
    assert "There are: tiny, tiny-lora" in unknown.value.body["error"]["message"]
    for fault in (
        {"extra_body": {"top_k": "x"}},
        {"max_tokens": 0},
        {"extra_body": {"temperature": -2}},
        {"messages": [{"role": "robot"}]},
    ):
        with pytest.raises(anthropic.BadRequestError) as bad:
            client.messages.create(**{"model": "tiny", "max_tokens": 1, "messages": [HELLO], **fault})
        assert bad.value.body["type"] == "error"
        assert bad.value.body["error"]["type"] == "invalid_request_error"
        assert not [word for word in INTERNAL if word in bad.value.body["error"]["message"]]


def test_a_refusal_at_the_door_has_anthropics_shape_there(guarded_server: GuardedServer):
    with pytest.raises(anthropic.AuthenticationError) as refused:
        anthropic_client(guarded_server, "wrong").messages.create(model="tiny", max_tokens=1, messages=[HELLO])
    assert refused.value.body["error"]["type"] == "authentication_error"
    assert refused.value.response.headers["www-authenticate"] == "Bearer"


def test_what_is_ours_and_what_is_vllms_have_one_type(tiny_server: Server):
    for options in ({"n": 0}, {"n": "x"}, {"messages": []}, {"n": 99}):
        with pytest.raises(BadRequestError) as error:
            tiny_server.client.chat.completions.create(**{"model": "tiny", "messages": [HELLO], **options})
        assert error.value.type == "invalid_request_error"


def test_a_place_in_pydantics_own_names_leads_through_the_body():
    loc = ("body", "function-wrap[f()]", "input", "list[union[A,B]]", 0, "A", "content")
    refusal = refusal_of([{"type": "missing", "loc": loc, "msg": "Field required", "input": {}}], {"input": [{}]})
    assert (refusal.param, json.loads(refusal.body)["error"]["message"]) == (
        "input[0].content",
        "input[0].content: it is missing.",
    )
