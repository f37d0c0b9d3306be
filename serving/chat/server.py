"""The chat page's way to the server: the OpenAI SDK on an event loop of its own, so that any answer can be stopped."""

import asyncio
import concurrent.futures
import functools
import os
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI, OpenAIError, Timeout

from qwen_vqa.serving.chat.problems import place_of, problem_of

URL_VARIABLE = "QWEN_VQA_CHAT_URL"
KEY_VARIABLE = "QWEN_VQA_CHAT_KEY"
# Between two pieces of an answer; before the first, a busy server may let it wait for its turn.
ANSWER_TIMEOUT = Timeout(300, connect=5)
STATUS_SECONDS = 3


@dataclass(frozen=True)
class ListedModel:
    """A model that the server offers; `base` is the model that an adapter adapts."""

    name: str
    base: str | None
    max_model_len: int | None


@dataclass(frozen=True)
class Served:
    """What the server said when it was last asked: its models, or what is wrong."""

    models: tuple[ListedModel, ...] = ()
    problem: str = ""


@dataclass
class StreamedReply:
    """An answer as far as it came. `problem` and `place` are set when the server refused or broke off."""

    text: str = ""
    done: bool = False
    stopped: bool = False
    cut: bool = False
    problem: str = ""
    place: str = ""
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    prompt_tokens: int = 0
    image_tokens: int = 0
    answer_tokens: int = 0


@dataclass
class RunningReply:
    """An answer that is being written, in another thread."""

    reply: StreamedReply
    _future: concurrent.futures.Future = field(repr=False)

    def wait(self, seconds: float) -> bool:
        """Whether it is finished, after waiting so long at most."""
        return bool(concurrent.futures.wait([self._future], seconds).done)

    def stop(self) -> None:
        """Close the connection, upon which the server stops working on it. What came so far stays."""
        if self._future.cancel():
            self.reply.stopped = self.reply.done = True


class ChatServer:
    """One server, for all sessions of the page; holds the key and nothing of any session."""

    def __init__(self, url: str, api_key: str) -> None:
        self.url = url
        self._client = AsyncOpenAI(base_url=url, api_key=api_key or "none", max_retries=0, timeout=ANSWER_TIMEOUT)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="chat-server").start()

    def served(self) -> Served:
        """Its models, or why it does not say."""
        try:
            page = self._start(self._models()).result()
        except OpenAIError as error:
            return Served(problem=problem_of(error, self.url))
        return Served(page)

    def ask(self, request: dict[str, Any]) -> RunningReply:
        """Start a chat completion (`model`, `messages`, ...); the reply fills while it runs."""
        reply = StreamedReply()
        return RunningReply(reply, self._start(self._answer(request, reply)))

    def _start(self, work: Coroutine) -> concurrent.futures.Future:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _models(self) -> tuple[ListedModel, ...]:
        listed = await self._client.with_options(timeout=STATUS_SECONDS).models.list()
        return tuple(
            ListedModel(one.id, getattr(one, "parent", None), getattr(one, "max_model_len", None))
            for one in listed.data
        )

    async def _answer(self, request: dict[str, Any], reply: StreamedReply) -> None:
        started = time.monotonic()
        try:
            await self._stream(request, reply, started)
        except OpenAIError as error:
            reply.problem, reply.place = problem_of(error, self.url, bool(reply.text)), place_of(error)
        finally:
            reply.seconds = time.monotonic() - started
            reply.done = True

    async def _stream(self, request: dict[str, Any], reply: StreamedReply, started: float) -> None:
        stream = await self._client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
        async with stream:
            async for chunk in stream:
                for choice in chunk.choices:
                    if choice.delta.content and not reply.text:
                        reply.first_token_seconds = time.monotonic() - started
                    reply.text += choice.delta.content or ""
                    reply.cut = reply.cut or choice.finish_reason == "length"
                if chunk.usage:
                    _count(reply, chunk.usage)


@functools.cache
def chat_server() -> ChatServer:
    """The server that `qwen-vqa chat` was given. The key is taken out of the environment."""
    return ChatServer(os.environ[URL_VARIABLE], os.environ.pop(KEY_VARIABLE, ""))


def _count(reply: StreamedReply, usage: Any) -> None:
    reply.prompt_tokens, reply.answer_tokens = usage.prompt_tokens, usage.completion_tokens
    details = usage.prompt_tokens_details
    by_kind = getattr(details, "multimodal_tokens", None) or {}
    reply.image_tokens = by_kind.get("image", 0)
