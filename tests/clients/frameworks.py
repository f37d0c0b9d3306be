"""Checks through frameworks, which make the requests of what their users write."""

import base64
from typing import Any

from tests.clients.asked import FORCED, KEY, Asked, Checks, Colour, format_of, tool


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


def with_llama_index(asked: Asked) -> Checks:
    """LlamaIndex' OpenAILike."""
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai_like import OpenAILike

    model = OpenAILike(
        model=asked.model,
        api_base=asked.url,
        api_key=KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=0,
    )
    picture = ImageBlock(image=base64.b64decode(asked.data), image_mimetype="image/png")
    first = ChatMessage(role="user", blocks=[picture, TextBlock(text=asked.question)])
    again = [
        first,
        ChatMessage(role="assistant", content=asked.answer),
        ChatMessage(role="user", content=asked.question),
    ]

    def called() -> Any:
        report = FunctionTool.from_defaults(fn=lambda **_: None, name="report", description="Report.", fn_schema=Colour)
        reply = model.chat_with_tools([report], chat_history=[first], tool_choice=FORCED)
        return model.get_tool_calls_from_response(reply)[0].tool_kwargs

    return {
        "image": lambda: asked.right(model.chat([first]).message.content),
        "stream": lambda: asked.right("".join(chunk.delta or "" for chunk in model.stream_chat([first]))),
        "JSON": lambda: asked.fits(model.chat([first], response_format=format_of(asked)).message.content),
        "tools": lambda: asked.fits(called()),
        "turns": lambda: asked.right(model.chat(again).message.content),
    }


def with_openai_agents(asked: Asked) -> Checks:
    """OpenAI's Agents SDK, over chat completions and over responses (turns)."""
    import asyncio

    from agents import (
        Agent,
        FunctionTool,
        ModelSettings,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        Runner,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    seen: list[str] = []

    async def report(_: Any, arguments: str) -> str:
        seen.append(arguments)
        return "reported"

    def agent(kind: Any = OpenAIChatCompletionsModel, **options: Any) -> Any:
        client = AsyncOpenAI(base_url=asked.url, api_key=KEY)
        settings = ModelSettings(temperature=0, tool_choice="report" if "tools" in options else None)
        return Agent(name="asked", model=kind(asked.model, client), model_settings=settings, **options)

    content = [
        {"type": "input_image", "image_url": asked.picture, "detail": "auto"},
        {"type": "input_text", "text": asked.question},
    ]
    first: Any = [{"role": "user", "content": content}]

    async def streamed() -> str:
        pieces = []
        async for event in Runner.run_streamed(agent(), first).stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                pieces.append(event.data.delta)
        return "".join(pieces)

    def called() -> str:
        schema = {**asked.schema, "additionalProperties": False}
        known = FunctionTool(name="report", description="Report.", params_json_schema=schema, on_invoke_tool=report)
        Runner.run_sync(agent(tools=[known], tool_use_behavior="stop_on_first_tool"), first)
        return seen[-1]

    def again() -> Any:
        asker = agent(OpenAIResponsesModel)
        before = Runner.run_sync(asker, first).to_input_list()
        return Runner.run_sync(asker, [*before, {"role": "user", "content": asked.question}]).final_output

    return {
        "image": lambda: asked.right(Runner.run_sync(agent(), first).final_output),
        "stream": lambda: asked.right(asyncio.run(streamed())),
        "JSON": lambda: asked.fits(Runner.run_sync(agent(output_type=Colour), first).final_output.model_dump()),
        "tools": lambda: asked.fits(called()),
        "turns": lambda: asked.right(again()),
    }


def with_dspy(asked: Asked) -> Checks:
    """DSPy's LM. Its signatures are prompts of their own, which a model has to be able to follow."""
    import dspy

    model = dspy.LM(f"openai/{asked.model}", api_base=asked.url, api_key=KEY, temperature=0, cache=False)

    def said(messages: list[dict[str, Any]], **options: Any) -> Any:
        reply = model(messages=messages, **options)[0]
        return reply if isinstance(reply, str) else reply["text"]

    def called() -> Any:
        reply = model(messages=asked.messages(), tools=[tool(asked)], tool_choice=FORCED)[0]
        return reply["tool_calls"][0].function.arguments

    return {
        "image": lambda: asked.right(said(asked.messages())),
        "JSON": lambda: asked.fits(said(asked.messages(), response_format=format_of(asked))),
        "tools": lambda: asked.fits(called()),
        "turns": lambda: asked.right(said(asked.turns())),
    }


def with_haystack(asked: Asked) -> Checks:
    """Haystack's OpenAIChatGenerator."""
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage, ImageContent
    from haystack.tools import Tool
    from haystack.utils import Secret

    first = ChatMessage.from_user(content_parts=[ImageContent(asked.data, mime_type="image/png"), asked.question])
    again = [first, ChatMessage.from_assistant(asked.answer), ChatMessage.from_user(asked.question)]

    def said(messages: list[Any], settings: dict[str, Any] | None = None, **options: Any) -> Any:
        generator = OpenAIChatGenerator(
            api_key=Secret.from_token(KEY),
            model=asked.model,
            api_base_url=asked.url,
            generation_kwargs={"temperature": 0, **(settings or {})},
            **options,
        )
        return generator.run(messages)["replies"][0]

    def streamed() -> str:
        pieces: list[str] = []
        said([first], streaming_callback=lambda chunk: pieces.append(chunk.content))
        return "".join(pieces)

    def called() -> Any:
        report = Tool(name="report", description="Report.", parameters=asked.schema, function=lambda **_: None)
        return said([first], {"tool_choice": FORCED}, tools=[report]).tool_calls[0].arguments

    return {
        "image": lambda: asked.right(said([first]).text),
        "stream": lambda: asked.right(streamed()),
        "JSON": lambda: asked.fits(said([first], {"response_format": format_of(asked)}).text),
        "tools": lambda: asked.fits(called()),
        "turns": lambda: asked.right(said(again).text),
    }


def with_llm(asked: Asked) -> Checks:
    """Simon Willison's `llm`, as its extra-openai-models.yaml sets it up. It forces no tool."""
    import llm
    from llm.default_plugins.openai_models import Chat

    model = Chat(asked.model, key=KEY, model_name=asked.model, api_base=asked.url, vision=True, supports_schema=True)
    options: dict[str, Any] = {
        "attachments": [llm.Attachment(content=base64.b64decode(asked.data), type="image/png")],
        "temperature": 0,
    }

    def again() -> str:
        conversation = model.conversation()
        conversation.prompt(asked.question, stream=False, **options).text()
        return conversation.prompt(asked.question, stream=False, temperature=0).text()

    return {
        "image": lambda: asked.right(model.prompt(asked.question, stream=False, **options).text()),
        "stream": lambda: asked.right("".join(model.prompt(asked.question, stream=True, **options))),
        "JSON": lambda: asked.fits(model.prompt(asked.question, stream=False, schema=Colour, **options).text()),
        "turns": lambda: asked.right(again()),
    }
