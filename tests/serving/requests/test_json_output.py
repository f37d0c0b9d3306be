"""Guided JSON ends: a random model, which would fill free whitespace up to the limit, answers with default flags."""

import json

import pytest
from openai import OpenAI

from tests.server import Server
from tests.serving.test_sdk import INPUT, LOOK, LOOK_IN_RESPONSES, MESSAGES, NAMED, PARAMETERS

FORCED = ["required", NAMED]
LIMIT = 300


@pytest.fixture
def client(tiny_server: Server) -> OpenAI:
    return tiny_server.client


def chat(client: OpenAI, **options):
    options = {"model": "tiny", "messages": MESSAGES, "max_tokens": LIMIT, "temperature": 0, **options}
    if "tools" in options:
        options["parallel_tool_calls"] = False  # a random model calls and calls
    return client.chat.completions.create(**options)


def test_json_of_a_schema_has_no_whitespace(client: OpenAI):
    schema = {"type": "json_schema", "json_schema": {"name": "look", "schema": PARAMETERS}}
    choice = chat(client, response_format=schema).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content in ('{"where":"left"}', '{"where":"right"}')


def test_and_in_responses(client: OpenAI):
    form = {"type": "json_schema", "name": "look", "schema": PARAMETERS, "strict": True}
    reply = client.responses.create(
        model="tiny", input=INPUT, max_output_tokens=LIMIT, temperature=0, text={"format": form}
    )
    assert reply.status == "completed"
    assert reply.output_text in ('{"where":"left"}', '{"where":"right"}')


def test_any_object_has_no_whitespace_outside_its_texts(client: OpenAI):
    content = chat(client, response_format={"type": "json_object"}, max_tokens=20).choices[0].message.content
    assert content.startswith(('{"', "{}"))


@pytest.mark.parametrize("choice", FORCED)
def test_a_forced_call_ends(choice: object, client: OpenAI):
    reply = chat(client, tools=[LOOK], tool_choice=choice).choices[0]
    (call,) = reply.message.tool_calls
    assert json.loads(call.function.arguments)["where"] in ("left", "right")
    chunks = list(chat(client, tools=[LOOK], tool_choice=choice, stream=True))
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert json.loads("".join(part.function.arguments or "" for part in parts)) == json.loads(call.function.arguments)


def test_a_forced_call_of_responses_ends(client: OpenAI):
    reply = client.responses.create(
        model="tiny",
        input=INPUT,
        max_output_tokens=LIMIT,
        temperature=0,
        tools=[LOOK_IN_RESPONSES],
        parallel_tool_calls=False,
        tool_choice="required",
    )
    (call,) = [item for item in reply.output if item.type == "function_call"]
    assert json.loads(call.arguments)["where"] in ("left", "right")


def test_a_call_beside_a_format_ends_whichever_it_is(client: OpenAI):
    schema = {"type": "json_schema", "json_schema": {"name": "look", "schema": PARAMETERS}}
    choice = chat(client, tools=[LOOK], tool_choice="auto", response_format=schema).choices[0]
    assert choice.finish_reason in ("stop", "tool_calls")
    said = choice.message.tool_calls[0].function.arguments if choice.message.tool_calls else choice.message.content
    assert json.loads(said)["where"] in ("left", "right")


def test_a_call_that_is_cut_is_one_line_in_the_log(client: OpenAI, tiny_server: Server):
    before = len(tiny_server.log.read_text())
    whole = chat(client, tools=[LOOK], tool_choice="required")
    cut = chat(client, tools=[LOOK], tool_choice="required", max_tokens=whole.usage.completion_tokens - 12)
    assert cut.choices[0].finish_reason == "length"
    lines = tiny_server.log.read_text()[before:].splitlines()
    assert "Traceback" not in "\n".join(lines)
    assert len([line for line in lines if "a tool call that was cut or is not JSON is answered as text" in line]) == 1
