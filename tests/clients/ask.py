"""Asks a running server through client libraries that nobody here wrote. Runs in their environment, not the project's.

python ask.py URL MODEL IMAGE QUESTION ANSWER LIBRARY    one line of JSON: what was asked, and "yes" or the fault
"""

import base64
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

Checks = dict[str, Callable[[], object]]
KEY = "none"


class Colour(BaseModel):
    """What the JSON and the tool have to hold."""

    color: Literal["red", "green", "blue", "pink", "purple", "yellow", "orange"]


class Asked:
    """The server, and what is asked of it."""

    def __init__(self, url: str, model: str, image: str, question: str, answer: str) -> None:
        self.url, self.model, self.question, self.answer = url, model, question, answer
        self.data = base64.b64encode(Path(image).read_bytes()).decode()
        self.picture = f"data:image/png;base64,{self.data}"
        self.schema = Colour.model_json_schema()

    def parts(self) -> list[dict[str, Any]]:
        """The picture and the question, as OpenAI's chat has them."""
        return [{"type": "image_url", "image_url": {"url": self.picture}}, {"type": "text", "text": self.question}]

    def messages(self, *later: dict[str, Any]) -> list[dict[str, Any]]:
        """A conversation that begins with them."""
        return [{"role": "user", "content": self.parts()}, *later]

    def turns(self) -> list[dict[str, Any]]:
        """The question, its answer, and the question again."""
        again = {"role": "user", "content": self.question}
        return self.messages({"role": "assistant", "content": self.answer}, again)

    def right(self, text: object) -> None:
        """Raises where it is not the answer."""
        if str(text).strip() != self.answer:
            raise AssertionError(f"{text!r} in place of {self.answer!r}")

    def fits(self, fields: object) -> None:
        """Raises where it is not the object that was asked for."""
        Colour.model_validate(json.loads(fields) if isinstance(fields, str) else fields)


def tool(asked: Asked) -> dict[str, Any]:
    """A tool that takes the object."""
    return {"type": "function", "function": {"name": "report", "description": "Report.", "parameters": asked.schema}}


FORCED = {"type": "function", "function": {"name": "report"}}


def format_of(asked: Asked) -> dict[str, Any]:
    """The object as `response_format`."""
    return {"type": "json_schema", "json_schema": {"name": "colour", "schema": asked.schema, "strict": True}}


def with_openai(asked: Asked) -> Checks:
    """OpenAI's own, as the measure of the others."""
    from openai import OpenAI

    create = OpenAI(base_url=asked.url, api_key=KEY).chat.completions.create

    def said(messages: list[dict[str, Any]], **options: Any) -> Any:
        return create(model=asked.model, messages=messages, temperature=0, **options)

    return {
        "image": lambda: asked.right(said(asked.messages()).choices[0].message.content),
        "stream": lambda: asked.right(
            "".join(c.choices[0].delta.content or "" for c in said(asked.messages(), stream=True) if c.choices)
        ),
        "JSON": lambda: asked.fits(said(asked.messages(), response_format=format_of(asked)).choices[0].message.content),
        "tools": lambda: asked.fits(
            said(asked.messages(), tools=[tool(asked)], tool_choice=FORCED)
            .choices[0]
            .message.tool_calls[0]
            .function.arguments
        ),
        "turns": lambda: asked.right(said(asked.turns()).choices[0].message.content),
    }


def with_litellm(asked: Asked) -> Checks:
    """LiteLLM's SDK."""
    import litellm

    def said(messages: list[dict[str, Any]], **options: Any) -> Any:
        target = {"model": f"openai/{asked.model}", "api_base": asked.url, "api_key": KEY, "temperature": 0}
        return litellm.completion(messages=messages, **target, **options)

    return {
        "image": lambda: asked.right(said(asked.messages()).choices[0].message.content),
        "stream": lambda: asked.right(
            "".join(c.choices[0].delta.content or "" for c in said(asked.messages(), stream=True))
        ),
        "JSON": lambda: asked.fits(said(asked.messages(), response_format=format_of(asked)).choices[0].message.content),
        "tools": lambda: asked.fits(
            said(asked.messages(), tools=[tool(asked)], tool_choice=FORCED)
            .choices[0]
            .message.tool_calls[0]
            .function.arguments
        ),
        "turns": lambda: asked.right(said(asked.turns()).choices[0].message.content),
    }


def with_langchain(asked: Asked) -> Checks:
    """LangChain's ChatOpenAI."""
    from langchain_core.messages import AIMessage, HumanMessage
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=asked.url, api_key=KEY, model=asked.model, temperature=0)
    first = HumanMessage(content=asked.parts())
    return {
        "image": lambda: asked.right(chat.invoke([first]).content),
        "stream": lambda: asked.right("".join(str(chunk.content) for chunk in chat.stream([first]))),
        "JSON": lambda: asked.fits(chat.with_structured_output(Colour).invoke([first]).model_dump()),
        "tools": lambda: asked.fits(
            chat.bind_tools([tool(asked)], tool_choice="report").invoke([first]).tool_calls[0]["args"]
        ),
        "turns": lambda: asked.right(
            chat.invoke([first, AIMessage(asked.answer), HumanMessage(asked.question)]).content
        ),
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


def with_pydantic_ai(asked: Asked) -> Checks:
    """Pydantic AI."""
    from pydantic_ai import Agent, BinaryContent, NativeOutput, ToolOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(asked.model, provider=OpenAIProvider(base_url=asked.url, api_key=KEY))
    prompt = [BinaryContent(base64.b64decode(asked.data), media_type="image/png"), asked.question]
    settings: Any = {"temperature": 0}

    def said(output: Any = str, **options: Any) -> Any:
        return Agent(model, output_type=output, retries=0, model_settings=settings).run_sync(prompt, **options)

    def streamed() -> str:
        return "".join(Agent(model, model_settings=settings).run_stream_sync(prompt).stream_text(delta=True))

    def again() -> Any:
        agent = Agent(model, model_settings=settings)
        return agent.run_sync(asked.question, message_history=said().all_messages()).output

    return {
        "image": lambda: asked.right(said().output),
        "stream": lambda: asked.right(streamed()),
        "JSON": lambda: asked.fits(said(NativeOutput(Colour)).output.model_dump()),
        "tools": lambda: asked.fits(said(ToolOutput(Colour)).output.model_dump()),
        "turns": lambda: asked.right(again()),
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


LIBRARIES: dict[str, Callable[[Asked], Checks]] = {
    "openai": with_openai,
    "litellm": with_litellm,
    "langchain-openai": with_langchain,
    "instructor": with_instructor,
    "pydantic-ai-slim": with_pydantic_ai,
    "anthropic": with_anthropic,
}


def found(checks: Checks) -> Iterable[tuple[str, str]]:
    """Each check with "yes", or what went wrong in one line."""
    for name, check in checks.items():
        try:
            check()
        except Exception as fault:  # the fault is the finding
            yield name, f"{type(fault).__name__}: {fault}".splitlines()[0][:160]
        else:
            yield name, "yes"


if __name__ == "__main__":
    *place, library = sys.argv[1:]
    print(json.dumps(dict(found(LIBRARIES[library](Asked(*place))))))
