"""Pictures decoded beside the event loop: few at once, callers in turn, and none whose client has gone."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from qwen_vqa.serving.admission.fair_queue import FairQueue

Decoded = TypeVar("Decoded")
GoingOn = Callable[[], None]
# At once: one of the largest pictures takes hundreds of megabytes while it is decoded.
DECODERS = min(4, os.cpu_count() or 1)
# Of processor time. What the limits let through takes 2 s at most; this is for what nobody has thought of.
LONGEST_SECONDS = 10.0


class DecodingEndedError(Exception):
    """Work that its thread has ended: nobody waits for it any more, or it took too long."""


class Decoders:
    """Threads that decode. Callers who wait take turns, so that one caller's many pictures do not stop another's one.

    Args:
        threads: decoding at once.
        longest_seconds: of processor time, for one picture.
    """

    def __init__(self, threads: int = DECODERS, longest_seconds: float = LONGEST_SECONDS) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode-image")
        # How many may wait is decided before a request comes here: by the queue of requests and by the images of each.
        self._queue = FairQueue(threads, waiting=sys.maxsize, waiting_per_caller=sys.maxsize)
        self._longest_seconds = longest_seconds

    async def run(self, caller: str, decode: Callable[[GoingOn], Decoded]) -> Decoded:
        """What `decode` returns, once it is this caller's turn.

        When the task that waits for it is cancelled, as vLLM does when the client has gone, the work ends, too.

        Args:
            caller: who it is done for.
            decode: called in a thread; it has to call what it is given now and then, and let pass what that raises.

        Raises:
            DecodingEndedError: it took too long.
        """
        ticket = self._queue.join(caller)
        work: Future[Decoded] | None = None
        stopped = threading.Event()
        try:
            await asyncio.wait({ticket.granted})  # awaiting it would cancel it with this task
            loop = asyncio.get_running_loop()
            work = self._threads.submit(self._decode, decode, stopped)
            work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._queue.leave, ticket))
            return await asyncio.wrap_future(work)
        finally:
            stopped.set()
            if work is None:  # never began; otherwise the place is taken until the thread is done
                self._queue.leave(ticket)

    def _decode(self, decode: Callable[[GoingOn], Decoded], stopped: threading.Event) -> Decoded:
        started = time.thread_time()

        def going_on() -> None:
            if stopped.is_set():
                raise DecodingEndedError("its client has gone")
            if time.thread_time() - started > self._longest_seconds:
                raise DecodingEndedError(f"it takes longer than {self._longest_seconds:g} s to decode")

        going_on()
        return decode(going_on)
