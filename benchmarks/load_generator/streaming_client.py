"""One streamed chat request over aiohttp, its events timed as they arrive.

aiohttp rather than OpenAI's SDK, which takes several times the CPU
(`python -m qwen_vqa.benchmarks.server_cost.client_choice`).
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from qwen_vqa.benchmarks.load_generator.records import Record

DONE = b"[DONE]"
# Of a refusal's body, in Record.detail.
DETAIL_CHARACTERS = 300
# How vLLM ends an answer that it gave up.
FAILED_REASONS = ("abort", "error")
CONTENT_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls")


@dataclass(frozen=True)
class Abilities:
    """What a server does beyond plain OpenAI, found out by asking it (`target.probe`).

    `extensions`: takes ignore_eos, min_tokens and continuous_usage_stats. `usage`: counts tokens at a stream's end;
    `chunk_usage`: in every event. `exact_length`: gave as many tokens as asked.
    """

    extensions: bool = True
    usage: bool = True
    chunk_usage: bool = True
    exact_length: bool = True


@dataclass(frozen=True)
class Target:
    """Where requests go. `timeout` is seconds for a whole request."""

    url: str
    api_key: str | None = field(repr=False)
    timeout: float
    abilities: Abilities = Abilities()
    extra_body: tuple[tuple[str, Any], ...] = ()

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {"Content-Type": "application/json", **key}

    def body(self, model: str, messages: list[dict[str, Any]], output_tokens: int) -> bytes:
        """A request for exactly this many tokens, where the server can be asked for that."""
        stream_options = {"include_usage": True}
        body: dict[str, Any] = {"model": model, "messages": messages, "stream": True, "temperature": 0}
        body |= {"max_tokens": output_tokens, "stream_options": stream_options}
        if self.abilities.extensions:
            body |= {"ignore_eos": True, "min_tokens": output_tokens}
            stream_options["continuous_usage_stats"] = True
        return json.dumps(body | dict(self.extra_body)).encode()


class StreamError(Exception):
    """A request that failed: what kind of failure, and the server's message."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail[:DETAIL_CHARACTERS]


@dataclass
class Client:
    """A session to a target. `start` is the cell's start on the monotonic clock, which all processes share."""

    target: Target
    session: aiohttp.ClientSession
    start: float

    async def ask(self, record: Record, body: bytes) -> str:
        """Send and read to the end; fills in the record and returns the answer's text.

        Kinds of failure: `connection` (none was made, or it broke before the answer), `http NNN`, `timeout`,
        `closed mid-stream` (no [DONE] and no finish_reason), `error event`, `finish_reason abort` or `error`,
        `bad JSON`, `no tokens`.
        """
        record.sent = self._now()
        answer: list[str] = []
        try:
            timeout = aiohttp.ClientTimeout(total=self.target.timeout)
            async with self.session.post(
                f"{self.target.url}/chat/completions", data=body, headers=self.target.headers, timeout=timeout
            ) as response:
                if response.status != 200:
                    raise StreamError(f"http {response.status}", await response.text(errors="replace"))
                await self._read(response, record, answer)
        except StreamError as error:
            record.error, record.detail = error.kind, error.detail
        except (TimeoutError, asyncio.TimeoutError):
            record.error, record.detail = "timeout", f"no end after {self.target.timeout:g} s"
        except aiohttp.ClientPayloadError as error:
            record.error, record.detail = "closed mid-stream", str(error)[:DETAIL_CHARACTERS]
        except (aiohttp.ClientError, OSError) as error:
            kind = "closed mid-stream" if record.chunks else "connection"
            record.error, record.detail = kind, str(error)[:DETAIL_CHARACTERS]
        except asyncio.CancelledError:
            record.error = "interrupted"
            raise
        finally:
            record.end = self._now()
        return "".join(answer)

    async def _read(self, response: aiohttp.ClientResponse, record: Record, answer: list[str]) -> None:
        finished = False
        async for data in _events(response):
            if data == DONE:
                finished = True
                break
            finished |= self._take(data, record, answer)
        if not finished:
            raise StreamError("closed mid-stream", f"the stream ended after {len(record.chunks)} events with tokens")
        if not record.chunks:
            raise StreamError("no tokens", "the stream ended well, without a token")

    def _take(self, data: bytes, record: Record, answer: list[str]) -> bool:
        """Count an event's tokens; returns whether it ends the answer."""
        now = self._now()
        try:
            event = json.loads(data)
            usage, choices = event.get("usage"), event.get("choices") or []
            delta = choices[0].get("delta") or {} if choices else {}
            if event.get("error") is not None:
                raise StreamError("error event", json.dumps(event["error"]))
            _take_usage(usage, record)
            if not choices:
                return False
            text = delta.get("content") or ""
            if usage:
                tokens = usage["completion_tokens"] - sum(count for _, count in record.chunks)
            else:
                tokens = int(any(delta.get(name) for name in CONTENT_FIELDS))
            reason = choices[0].get("finish_reason")
            if reason in FAILED_REASONS:
                raise StreamError(f"finish_reason {reason}", data.decode(errors="replace"))
            finished = reason is not None
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            raise StreamError("bad JSON", data.decode(errors="replace")) from None
        if tokens > 0:
            record.first_token = record.first_token if record.chunks else now
            record.last_token = now
            record.chunks.append((now, tokens))
            if not usage:
                record.output_tokens += tokens
        answer.append(text)
        return finished

    def _now(self) -> float:
        return time.monotonic() - self.start


def _take_usage(usage: dict[str, Any] | None, record: Record) -> None:
    if not usage:
        return
    details = usage.get("prompt_tokens_details") or {}
    record.output_tokens = usage["completion_tokens"]
    record.prompt_tokens = usage["prompt_tokens"]
    record.cached_tokens = details.get("cached_tokens", record.cached_tokens)
    record.image_tokens = (details.get("multimodal_tokens") or {}).get("image", record.image_tokens)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of server-sent events (WHATWG HTML, 9.2). Events here are one data line each."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()
