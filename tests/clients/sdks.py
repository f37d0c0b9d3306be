"""Checks through SDKs: what sends requests, and little more."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.clients.asked import FORCED, KEY, Asked, Checks, Colour, format_of, tool


def with_openai(asked: Asked) -> Checks:
    """OpenAI's own, as the measure of the others."""
    from openai import OpenAI

    create = OpenAI(base_url=asked.url, api_key=KEY).chat.completions.create
    return _checks_of_chat(asked, partial(create, model=asked.model, temperature=0))


def with_litellm(asked: Asked) -> Checks:
    """LiteLLM's SDK, which has OpenAI's forms."""
    import litellm

    target = {"model": f"openai/{asked.model}", "api_base": asked.url, "api_key": KEY, "temperature": 0}
    return _checks_of_chat(asked, partial(litellm.completion, **target))


def _checks_of_chat(asked: Asked, said: Callable[..., Any]) -> Checks:
    def streamed() -> str:
        chunks = said(messages=asked.messages(), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    def message(messages: list[dict[str, Any]], **options: Any) -> Any:
        return said(messages=messages, **options).choices[0].message

    def called() -> str:
        calls = message(asked.messages(), tools=[tool(asked)], tool_choice=FORCED).tool_calls
        return calls[0].function.arguments

    return {
        "image": lambda: asked.right(message(asked.messages()).content),
        "stream": lambda: asked.right(streamed()),
        "JSON": lambda: asked.fits(message(asked.messages(), response_format=format_of(asked)).content),
        "tools": lambda: asked.fits(called()),
        "turns": lambda: asked.right(message(asked.turns()).content),
    }


def with_instructor(asked: Asked) -> Checks:
    """Instructor, in its modes of JSON and tools."""
    import instructor
    from openai import OpenAI

    def said(mode: instructor.Mode, messages: list[dict[str, Any]]) -> Any:
        client = instructor.from_openai(OpenAI(base_url=asked.url, api_key=KEY), mode=mode)
        return client.chat.completions.create(
            model=asked.model, messages=messages, response_model=Colour, temperature=0, max_retries=0
        ).model_dump()

    return {
        "JSON": lambda: asked.fits(said(instructor.Mode.JSON_SCHEMA, asked.messages())),
        "tools": lambda: asked.fits(said(instructor.Mode.TOOLS, asked.messages())),
        "turns": lambda: asked.fits(said(instructor.Mode.JSON_SCHEMA, asked.turns())),
    }


def with_anthropic(asked: Asked) -> Checks:
    """Anthropic's SDK, against /v1/messages."""
    from anthropic import Anthropic

    client = Anthropic(base_url=asked.url.removesuffix("/v1"), auth_token=KEY)
    source = {"type": "base64", "media_type": "image/png", "data": asked.data}
    first = {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": asked.question}]}
    again = [first, {"role": "assistant", "content": asked.answer}, {"role": "user", "content": asked.question}]

    def said(messages: list[dict[str, Any]], **options: Any) -> Any:
        return client.messages.create(model=asked.model, max_tokens=300, messages=messages, **options)

    def streamed() -> str:
        with client.messages.stream(model=asked.model, max_tokens=300, messages=[first]) as stream:
            return "".join(stream.text_stream)

    def called() -> Any:
        tools = [{"name": "report", "description": "Report.", "input_schema": asked.schema}]
        reply = said([first], tools=tools, tool_choice={"type": "tool", "name": "report"})
        return next(block.input for block in reply.content if block.type == "tool_use")

    return {
        "image": lambda: asked.right(said([first]).content[0].text),
        "stream": lambda: asked.right(streamed()),
        "tools": lambda: asked.fits(called()),
        "turns": lambda: asked.right(said(again).content[0].text),
    }
