"""Reads a request's body whole, within bounds: of one body, of what one caller holds, and of all there are."""

import asyncio
import time
from collections import Counter

from starlette.types import Message, Receive, Scope

from qwen_vqa.serving.errors.refusals import RefusedError, too_many

# Memory that bodies may take while they are read and wait for their turn, and one caller's part of it.
HELD_BYTES = 2**30
HELD_BYTES_PER_CALLER = HELD_BYTES // 4
# Between two pieces of a body; a client that stalls gives its memory back.
STALL_SECONDS = 30.0
# A body that comes in time piece by piece may still take for ever: beyond STALL_SECONDS, so much has to come a second.
BYTES_PER_SECOND = 8 * 2**10
# What a client is told to wait where nobody can know how long: the SDK backs off by itself after that.
RETRY_SECONDS = 5


class ClientGoneError(Exception):
    """The client is gone: there is nobody to answer."""


class Bodies:
    """The bodies that are being read, or were read and wait; none longer than `longest` bytes."""

    def __init__(self, longest: int):
        self.longest = longest
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Bytes, of all callers."""
        return self._held.total()

    def of(self, caller: str, scope: Scope, receive: Receive) -> "Body":
        """A request's body, to be read within a `with`, at whose end it counts no more."""
        return Body(self, caller, scope, receive)

    def hold(self, caller: str, size: int) -> None:
        """Count so many bytes more.

        Raises:
            RefusedError: 429, the caller or all together hold too many.
        """
        self._held[caller] += size
        if self._held[caller] > HELD_BYTES_PER_CALLER or self.held > HELD_BYTES:
            raise too_many("Rate limit reached: too many long requests at once.", "requests", RETRY_SECONDS)

    def release(self, caller: str, size: int) -> None:
        """Count so many bytes no more."""
        self._held[caller] -= size
        self._held += Counter()  # forgets callers who hold nothing


class Body:
    """One request's body: read once by us, then handed on as it was."""

    def __init__(self, bodies: Bodies, caller: str, scope: Scope, receive: Receive):
        self._bodies = bodies
        self._caller = caller
        self._length = dict(scope["headers"]).get(b"content-length", b"")
        self._receive = receive
        self._held = 0
        self._content: bytes | None = None

    def __enter__(self) -> "Body":
        return self

    def __exit__(self, *exception: object) -> None:
        self._let_go()

    async def read(self) -> bytes:
        """All of it.

        Raises:
            RefusedError: 413, it is too long; 408, it comes too slowly; 429, too much is held already.
            ClientGoneError: the client went before the end.
        """
        if self._length.isdigit() and int(self._length) > self._bodies.longest:
            raise self._too_long()
        chunks, more = [], True
        began = time.monotonic()
        while more:
            left = began + STALL_SECONDS + self._held / BYTES_PER_SECOND - time.monotonic()
            try:
                async with asyncio.timeout(min(left, STALL_SECONDS)):  # wait_for would start a task for each piece
                    message = await self._receive()
            except TimeoutError:
                raise self._too_slow() from None
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            chunks.append(chunk)
            self._held += len(chunk)
            self._bodies.hold(self._caller, len(chunk))
            if self._held > self._bodies.longest:  # counted, since a chunked request does not say its length
                raise self._too_long()
            more = message.get("more_body", False)
        self._content = b"".join(chunks)
        return self._content

    async def replay(self) -> Message:
        """`receive` for the app: the body that was read, then what comes after it, which is the disconnect."""
        if self._content is None:
            return await self._receive()
        message = {"type": "http.request", "body": self._content, "more_body": False}
        self._let_go()
        return message

    def _let_go(self) -> None:
        self._bodies.release(self._caller, self._held)
        self._held, self._content = 0, None

    def _too_slow(self) -> RefusedError:
        least = f"{BYTES_PER_SECOND / 2**10:g} KiB/s"
        return RefusedError(
            408,
            f"the body came too slowly: {self._held:,} bytes so far. The server waits {STALL_SECONDS:g} s for the next "
            f"piece, and wants {least} in the long run.",
            code="request_timeout",
        )

    def _too_long(self) -> RefusedError:
        return RefusedError(
            413,
            f"the request's body is longer than {self._bodies.longest / 2**20:g} MiB (--max-body-mb). "
            "Send smaller images, or their URLs.",
            code="body_too_large",
        )
