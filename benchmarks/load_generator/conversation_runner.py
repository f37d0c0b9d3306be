"""One process's share of a cell: its conversations, sent at their times or by its users, in one event loop."""

import asyncio
import gc
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from qwen_vqa.benchmarks.load_generator.records import Record
from qwen_vqa.benchmarks.load_generator.streaming_client import Client, Target
from qwen_vqa.benchmarks.load_generator.workload import WorkloadConversation


@dataclass(frozen=True)
class Share:
    """Conversations and, in an open loop, when each is to be sent; in a closed loop, the number of users."""

    target: Target
    conversations: tuple[WorkloadConversation, ...]
    times: tuple[float, ...] | None
    users: int


@dataclass(frozen=True)
class Prepared:
    """A share whose first requests are drawn and encoded, so that none of that happens while it is measured."""

    share: Share
    messages: list[list[dict[str, Any]]]
    bodies: list[bytes]


def prepare(share: Share) -> Prepared:
    """Draw, read and encode the pictures."""
    messages = [[conversation.turns[0].message()] for conversation in share.conversations]
    bodies = [
        share.target.body(conversation.model, first, conversation.turns[0].output_tokens)
        for conversation, first in zip(share.conversations, messages, strict=True)
    ]
    gc.freeze()
    return Prepared(share, messages, bodies)


async def run(
    prepared: Prepared, start: float, emit: Callable[[Record], None], stop: asyncio.Event | None = None
) -> float:
    """Send everything, or what is sent until `stop`; calls `emit` for every ended request.

    `start` is the cell's start on the monotonic clock. Returns the CPU seconds that this process took.
    """
    await asyncio.sleep(max(0.0, start - time.monotonic()))
    used = cpu_seconds()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        sender = _Sender(prepared, Client(prepared.share.target, session, start), emit)
        work = asyncio.create_task(sender.open_loop() if prepared.share.times is not None else sender.closed_loop())
        stopping = asyncio.create_task(stop.wait()) if stop else None
        try:
            await asyncio.wait([work, stopping] if stopping else [work], return_when=asyncio.FIRST_COMPLETED)
        finally:  # also where this is cancelled: nothing may still be sending when the session closes
            for task in (work, stopping):
                if task is not None and not task.done():
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
        if not work.cancelled():
            work.result()  # an error of ours, with its traceback
    return cpu_seconds() - used


def cpu_seconds() -> float:
    """Of this process, in user and system mode."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass
class _Sender:
    prepared: Prepared
    client: Client
    emit: Callable[[Record], None]

    async def closed_loop(self) -> None:
        waiting = iter(range(len(self.prepared.bodies)))

        async def user() -> None:
            for number in waiting:
                await self._converse(number, time.monotonic() - self.client.start)

        await _together([asyncio.create_task(user()) for _ in range(self.prepared.share.users)])

    async def open_loop(self) -> None:
        assert self.prepared.share.times is not None
        running: list[asyncio.Task[None]] = []
        try:
            for number, intended in enumerate(self.prepared.share.times):
                await asyncio.sleep(max(0.0, self.client.start + intended - time.monotonic()))
                running.append(asyncio.create_task(self._converse(number, intended)))
        except asyncio.CancelledError:
            await _end(running)
            raise
        await _together(running)

    async def _converse(self, number: int, intended: float) -> None:
        conversation = self.prepared.share.conversations[number]
        messages = self.prepared.messages[number]
        body = self.prepared.bodies[number]
        for turn_number, turn in enumerate(conversation.turns):
            if turn_number:
                messages.append(turn.message())
                body = self.client.target.body(conversation.model, messages, turn.output_tokens)
            record = Record(
                index=conversation.index + turn_number,
                turn=turn_number,
                model=conversation.model,
                asked_tokens=turn.output_tokens,
                images=len(turn.pictures),
                repeated_image=turn.repeated_image,
                intended=intended,
            )
            try:
                answer = await self.client.ask(record, body)
            finally:
                self.emit(record)
            if record.error:
                # What would have followed is not asked; it counts as not sent.
                return
            messages.append({"role": "assistant", "content": answer})
            intended = record.end


async def _together(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for all. Where one fails or this is cancelled, so are the others, and this waits until they have ended;
    gather alone would come back at the first that did."""
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        await _end(tasks)
        raise


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
