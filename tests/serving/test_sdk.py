"""What OpenAI's Python SDK finds here, feature by feature: the README's table is made from these tests."""

import json
import time
from typing import Literal

import httpx
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from tests.sdk_table import README, feature, table, table_of
from tests.server import Server
from tests.serving.test_api import data_url
from tests.tiny import picture, tiny_processor

CHAT, TOOLS, RESPONSES, MODELS, OTHER = "Chat completions", "Tools", "Responses", "Models", "Others"
PICTURE = data_url(picture(1))
MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": PICTURE}}, {"type": "text", "text": "what?"}],
    }
]
INPUT = [
    {
        "role": "user",
        "content": [{"type": "input_image", "image_url": PICTURE}, {"type": "input_text", "text": "what?"}],
    }
]
PARAMETERS = {
    "type": "object",
    "properties": {"where": {"type": "string", "enum": ["left", "right"]}},
    "required": ["where"],
    "additionalProperties": False,
}
LOOK = {"type": "function", "function": {"name": "look", "description": "Look there.", "parameters": PARAMETERS}}
LOOK_IN_RESPONSES = {"type": "function", "name": "look", "description": "Look there.", "parameters": PARAMETERS}
NAMED = {"type": "function", "function": {"name": "look"}}


class Seen(BaseModel):
    """An answer's shape."""

    shape: Literal["circle", "square"]
    red: bool


@pytest.fixture
def client(tiny_server: Server) -> OpenAI:
    return tiny_server.client


def chat(client: OpenAI, **options):
    options = {"model": "tiny", "messages": MESSAGES, "max_tokens": 16, "temperature": 0, **options}
    return client.chat.completions.create(**options)


def respond(client: OpenAI, **options):
    options = {"model": "tiny", "input": INPUT, "max_output_tokens": 16, "temperature": 0, **options}
    return client.responses.create(**options)


def no_spaces() -> dict[str, int]:
    """A bias against blanks, of which a random model would fill its JSON."""
    tokenizer = tiny_processor().tokenizer
    return {str(token): -100 for token in range(len(tokenizer)) if any(c.isspace() for c in tokenizer.decode([token]))}


@feature(CHAT, "images by data URL, answer with usage")
def test_chat(client: OpenAI):
    reply = chat(client)
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.multimodal_tokens == {"image": 5}


@feature(CHAT, "messages of images alone")
def test_image_only_messages(client: OpenAI):
    image_alone = {"role": "user", "content": MESSAGES[0]["content"][:1]}
    assert chat(client, messages=[image_alone]).choices[0].message.content


@feature(CHAT, "streaming, with usage")
def test_streaming(client: OpenAI):
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@feature(CHAT, "cancelling a stream stops the engine")
def test_cancelling(client: OpenAI, tiny_server: Server):
    before = metric(tiny_server, "vllm:generation_tokens_total")
    stream = chat(client, stream=True, max_tokens=900, extra_body={"ignore_eos": True})
    for _ in range(3):
        next(stream)
    assert metric(tiny_server, "vllm:num_requests_running") == 1
    stream.close()
    deadline = time.monotonic() + 10
    while metric(tiny_server, "vllm:num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert metric(tiny_server, "vllm:num_requests_running") == 0
    stopped = metric(tiny_server, "vllm:generation_tokens_total")
    assert 0 < stopped - before < 900
    time.sleep(1)
    assert metric(tiny_server, "vllm:generation_tokens_total") == stopped


def metric(server: Server, name: str) -> float:
    lines = httpx.get(server.url.removesuffix("/v1") + "/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


@feature(CHAT, "stop")
def test_stop(client: OpenAI):
    whole = chat(client).choices[0].message.content
    stop = whole[len(whole) // 2]
    choice = chat(client, stop=[stop]).choices[0]
    assert choice.message.content == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"


@feature(CHAT, "max_tokens, max_completion_tokens")
def test_bounds_of_the_answer(client: OpenAI):
    forever = {"ignore_eos": True}
    assert chat(client, max_tokens=5, extra_body=forever).usage.completion_tokens == 5
    reply = chat(client, max_tokens=None, max_completion_tokens=3, extra_body=forever)
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (3, "length")


@feature(CHAT, "seed, temperature, top_p, penalties, logit_bias")
def test_sampling(client: OpenAI):
    def sampled(seed: int) -> str:
        return chat(client, temperature=1.5, seed=seed).choices[0].message.content

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1
    greedy = chat(client).choices[0].message.content
    assert chat(client, temperature=1, top_p=1e-6, seed=1).choices[0].message.content == greedy
    assert chat(client, frequency_penalty=2, presence_penalty=2).choices[0].message.content
    token = tiny_processor().tokenizer.convert_tokens_to_ids("a")
    assert chat(client, logit_bias={str(token): 100}, max_tokens=4).choices[0].message.content == "aaaa"


@feature(CHAT, "logprobs, top_logprobs")
def test_logprobs(client: OpenAI):
    content = chat(client, logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in content] == [3] * 4
    assert all(token.logprob == token.top_logprobs[0].logprob <= 0 for token in content)


@feature(CHAT, "n")
def test_several_answers(client: OpenAI):
    choices = chat(client, n=3, temperature=1.5, seed=1).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) > 1


@feature(CHAT, "JSON: response_format json_object, json_schema, .parse()")
def test_json(client: OpenAI):
    json_object = chat(client, response_format={"type": "json_object"}, logit_bias=no_spaces(), max_tokens=200)
    if json_object.choices[0].finish_reason == "stop":  # a random model may write on for ever, but JSON
        assert isinstance(json.loads(json_object.choices[0].message.content), dict)
    assert json_object.choices[0].message.content.startswith("{")
    parsed = client.chat.completions.parse(
        model="tiny",
        messages=MESSAGES,
        response_format=Seen,
        logit_bias=no_spaces(),
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(parsed.choices[0].message.parsed, Seen)


@feature(CHAT, "user, store, metadata, service_tier", "taken, without effect")
def test_parameters_without_effect(client: OpenAI):
    plain = chat(client).choices[0].message.content
    reply = chat(client, user="me", store=True, metadata={"a": "b"}, service_tier="auto")
    assert reply.choices[0].message.content == plain


@feature(CHAT, "functions, function_call, audio, web_search_options", "400")
@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("functions", {"functions": [{"name": "look", "parameters": PARAMETERS}]}),
        ("function_call", {"function_call": "auto"}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("audio", {"audio": {"voice": "alloy", "format": "wav"}}),
        ("web_search_options", {"web_search_options": {}}),
    ],
)
def test_what_would_be_left_out_is_refused(client: OpenAI, field: str, options: dict):
    with pytest.raises(BadRequestError) as error:
        chat(client, **options)
    assert error.value.param == field


@feature(TOOLS, "tool_choice: a function's name, required")
@pytest.mark.parametrize("choice", [NAMED, "required"], ids=["named", "required"])
def test_a_tool_is_called(client: OpenAI, choice):
    reply = chat(client, tools=[LOOK], tool_choice=choice, parallel_tool_calls=False, max_tokens=100)
    (call,) = reply.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "look")
    assert json.loads(call.function.arguments)["where"] in ("left", "right")
    assert call.id


@feature(TOOLS, "tool_choice auto, none; parallel_tool_calls")
def test_a_tool_may_be_left_alone(client: OpenAI):
    for choice in ("auto", "none"):
        for parallel in (True, False):
            message = chat(client, tools=[LOOK], tool_choice=choice, parallel_tool_calls=parallel).choices[0].message
            assert message.content
            assert not message.tool_calls


@feature(TOOLS, "calls in a stream")
def test_a_tool_is_called_in_a_stream(client: OpenAI):
    chunks = chat(client, tools=[LOOK], tool_choice=NAMED, max_tokens=100, stream=True)
    calls = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or []]
    assert "".join(call.function.name or "" for call in calls) == "look"
    arguments = json.loads("".join(call.function.arguments or "" for call in calls))
    assert arguments["where"] in ("left", "right")


@feature(TOOLS, "results in the next turn")
def test_a_tools_result_is_read(client: OpenAI):
    called = chat(client, tools=[LOOK], tool_choice=NAMED, max_tokens=100).choices[0].message

    def answer(result: str) -> str:
        turns = [*MESSAGES, called.model_dump(exclude_none=True)]
        turns.append({"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": result})
        return chat(client, messages=turns, tools=[LOOK]).choices[0].message.content

    assert answer("a cat") != answer("nothing at all")


@feature(TOOLS, "a choice that is no tool", "400")
def test_a_choice_that_is_no_tool(client: OpenAI):
    with pytest.raises(BadRequestError, match="does not match any of the specified `tools`"):
        chat(client, tools=[LOOK], tool_choice={"type": "function", "function": {"name": "other"}})


@feature(RESPONSES, "images, instructions, usage")
def test_a_response(client: OpenAI):
    reply = respond(client)
    assert reply.output_text == chat(client).choices[0].message.content
    assert reply.usage.input_tokens == chat(client).usage.prompt_tokens
    instructed = [respond(client, instructions=text).usage.input_tokens for text in ("Be brief.", "Be brief. " * 20)]
    assert reply.usage.input_tokens != instructed[0] < instructed[1] - 19


@feature(RESPONSES, "streaming")
def test_a_response_in_a_stream(client: OpenAI):
    events = list(respond(client, stream=True))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == respond(client).output_text
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert events[-1].response.usage.output_tokens == 16


@feature(RESPONSES, "tools of type function")
def test_a_tool_in_a_response(client: OpenAI):
    choice = {"type": "function", "name": "look"}
    (call,) = respond(client, tools=[LOOK_IN_RESPONSES], tool_choice=choice, max_output_tokens=100).output
    assert (call.type, call.name) == ("function_call", "look")
    assert json.loads(call.arguments)["where"] in ("left", "right")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "a cat"}
    assert respond(client, input=[*INPUT, call.model_dump(exclude_none=True), result]).output_text


@feature(RESPONSES, "JSON: text.format, .parse()")
def test_json_in_a_response(client: OpenAI):
    parsed = client.responses.parse(
        model="tiny", input=INPUT, text_format=Seen, max_output_tokens=200, temperature=1, extra_body={"seed": 1}
    )
    assert parsed.output_text.lstrip().startswith("{")


@feature(RESPONSES, "store", "taken, without effect")
def test_a_response_is_not_kept(client: OpenAI):
    reply = respond(client, store=True)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(reply.id)
    with pytest.raises(NotFoundError):
        client.responses.cancel(reply.id)


@feature(RESPONSES, "previous_response_id, conversation, prompt, background, tools of other types", "400")
@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("conversation", {"conversation": "conv_1"}),
        ("prompt", {"prompt": {"id": "pmpt_1"}}),
        ("background", {"background": True}),
        ("tools[0].type", {"tools": [{"type": "web_search"}]}),
    ],
)
def test_what_a_response_has_not_is_refused(client: OpenAI, field: str, options: dict):
    with pytest.raises(BadRequestError) as error:
        respond(client, **options)
    assert error.value.param == field


@feature(MODELS, "list, retrieve; adapters with parent and root")
def test_models(client: OpenAI):
    base, adapter = client.models.list()
    assert (base.id, adapter.id, adapter.parent) == ("tiny", "tiny-lora", "tiny")
    assert adapter.root.endswith("adapters/tiny-lora")
    assert client.models.retrieve("tiny-lora").root == adapter.root
    with pytest.raises(NotFoundError, match="there are: tiny, tiny-lora"):
        client.models.retrieve("nobody")


@feature(OTHER, "completions (text), with streaming, logprobs, echo, several prompts")
def test_completions(client: OpenAI):
    options = {"model": "tiny", "max_tokens": 4, "temperature": 0}
    one = client.completions.create(prompt="Once", echo=True, logprobs=1, **options).choices[0]
    assert one.text.startswith("Once")
    assert one.logprobs.token_logprobs[0] is None
    both = client.completions.create(prompt=["Once", "Twice"], **options).choices
    assert len(both) == 2
    streamed = client.completions.create(prompt="Once", stream=True, **options)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == both[0].text


@feature(OTHER, "embeddings, audio, files, moderations, images, batches, fine-tuning", "404")
@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.embeddings.create(model="tiny", input="x"),
        lambda client: client.audio.speech.create(model="tiny", voice="alloy", input="x"),
        lambda client: client.files.list(),
        lambda client: client.moderations.create(input="x"),
        lambda client: client.images.generate(prompt="x"),
        lambda client: client.batches.list(),
        lambda client: client.fine_tuning.jobs.list(),
    ],
    ids=["embeddings", "audio", "files", "moderations", "images", "batches", "fine-tuning"],
)
def test_what_is_not_here(client: OpenAI, ask):
    with pytest.raises(NotFoundError, match="there is no such route"):
        ask(client)


@feature(OTHER, "errors as the SDK's exceptions, with message and param")
def test_errors(client: OpenAI):
    with pytest.raises(NotFoundError, match="nobody"):
        chat(client, model="nobody")
    with pytest.raises(BadRequestError) as error:
        chat(client, messages=[{"role": "user", "content": []}])
    assert error.value.param == "messages[0].content"
    assert isinstance(error.value, APIStatusError)


def test_the_readmes_table_is_what_these_tests_show():
    assert table_of(README.read_text(encoding="utf-8")) == table(), "write it anew: python -m tests.sdk_table"
