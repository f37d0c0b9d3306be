"""HTTP/1.1 on one connection, with bounds that neither uvicorn nor h11 has.

Written for uvicorn 0.30 to 0.54 (`H11Protocol` with conn, cycle, flow, transport, send_400_response) and h11 0.16.
uvicorn gives a connection any time for its first request, and for what follows an answer that came before the body's
end; h11 looks at a head's length only while the head is incomplete, and never at the number of its lines.
"""

import re
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import Any, NoReturn

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from qwen_vqa.serving.errors.refusals import RefusedError

# Of a request line and its headers; vLLM takes 4 MiB and counts none.
HEAD_BYTES = 64 * 2**10
HEADERS = 100
HEAD_SECONDS = 10.0
# Of a body whose answer was sent already, as a refusal is: read on, since closing on unread bytes would reset the
# connection, and the client would not see the answer.
REST_BYTES = 64 * 2**20
REST_SECONDS = 10.0
# The same after an error, where it is not known how much the client still has to say.
LAST_BYTES = 2**20
LAST_SECONDS = 1.0
# For a client that does not read its answer.
WRITE_SECONDS = 60.0
# Chunks of a body: each costs the same, however small it is. So many may be smaller than this on the average.
SMALL_CHUNKS = 500
SMALL_CHUNK_BYTES = 64

_BLANK_LINE = re.compile(rb"\n\r?\n")  # as h11 has it


class ConnectionPhase(Enum):
    """What a connection is in the middle of."""

    HEAD = "head"  # a request's head: its bytes come, or nothing has come since the connection was made
    IDLE = "idle"  # between two requests
    BODY = "body"  # the client sends a body
    BUSY = "busy"  # the server works on the answer
    REST = "rest"  # answered; the client still sends what nobody wants


class BoundedConnection(h11.Connection):
    """h11's parser, which refuses a head that is too long, has too many lines, or a body in crumbs.

    `refusal` says what was wrong where `h11.RemoteProtocolError` was raised for it.
    """

    def __init__(self, head_bytes: int, headers: int):
        super().__init__(h11.SERVER, head_bytes)
        self._head_bytes = head_bytes
        self._headers = headers
        self._received = self._lines = 0  # bytes and ends of lines since the head began, or more
        self._chunks = self._chunk_bytes = 0
        self.refusal: RefusedError | None = None

    def receive_data(self, data: bytes) -> None:
        """As h11's."""
        if self.their_state is h11.IDLE:  # of what comes beside a body, start_next_cycle counts what the next head is
            self._received += len(data)
            self._lines += data.count(b"\n")
        super().receive_data(data)

    def start_next_cycle(self) -> None:
        """As h11's."""
        super().start_next_cycle()
        pipelined, _ = self.trailing_data
        self._received, self._lines = len(pipelined), pipelined.count(b"\n")
        self._chunks = self._chunk_bytes = 0

    def next_event(self) -> Any:
        """As h11's.

        Raises:
            h11.RemoteProtocolError: for what h11 refuses, and the bounds.
        """
        if self.their_state is h11.IDLE:
            self._check_head()
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:  # a head, what comes after a body, or the line before a chunk
                self.refusal = self._too_long()
            raise
        if isinstance(event, h11.Data) and event.chunk_end:
            self._check_chunk(len(event.data))
        return event

    @property
    def has_begun(self) -> bool:
        """Whether something of the next request's head has come."""
        return self.their_state is h11.IDLE and self._received > 0

    def _check_head(self) -> None:
        if self._received <= self._head_bytes and self._lines <= self._headers + 1:
            return
        data, _ = self.trailing_data
        end = _BLANK_LINE.search(data)
        head = data[: end.start()] if end else data
        if len(head) > self._head_bytes:
            self._refuse(self._too_long())
        if head.count(b"\n") > self._headers:  # the request line's among them
            message = f"the request has more than {self._headers} headers; send fewer."
            self._refuse(RefusedError(431, message, code="headers_too_large"))

    def _check_chunk(self, size: int) -> None:
        self._chunks += 1
        self._chunk_bytes += size
        if self._chunks > SMALL_CHUNKS and self._chunk_bytes < self._chunks * SMALL_CHUNK_BYTES:
            message = f"the body comes in chunks of less than {SMALL_CHUNK_BYTES} bytes; send larger ones."
            self._refuse(RefusedError(400, message, code="chunks_too_small"))

    def _refuse(self, refusal: RefusedError) -> NoReturn:
        self.refusal = refusal
        raise h11.RemoteProtocolError(refusal.message, error_status_hint=refusal.status)

    def _too_long(self) -> RefusedError:
        message = f"the request's headers are longer than {self._head_bytes / 2**10:g} KiB; send fewer or shorter ones."
        return RefusedError(431, message, code="headers_too_large")


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with bounds in bytes, and what `Connections` needs to hold it to bounds in time.

    Args:
        address: of the client, None where it has none.
        lost: called when the connection is closed.
        last_words: for a connection that the server closes between two requests.
        head_bytes, headers: largest head of a request, and how many headers it may have.
        uvicorn: as `H11Protocol` takes it.
    """

    def __init__(
        self,
        address: str | None,
        lost: Callable[["BoundedProtocol"], None],
        last_words: Callable[[], RefusedError],
        head_bytes: int,
        headers: int,
        **uvicorn: Any,
    ):
        super().__init__(**uvicorn)
        self.address = address
        self._lost = lost
        self._last_words = last_words
        self.conn: BoundedConnection = BoundedConnection(head_bytes, headers)
        self.phase = ConnectionPhase.HEAD
        self.since = self.loop.time()  # when the phase began
        self._rest = REST_BYTES
        self._unwritten_since: float | None = None
        self._last_until: float | None = None  # an error was answered; what still comes is dropped

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        if self._last_until is not None or self.phase is ConnectionPhase.REST:
            self._rest -= len(data)
            if self._rest < 0:
                return self.transport.abort()
        if self._last_until is not None:
            return
        super().data_received(data)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        self._lost(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """uvicorn's."""
        super().on_response_complete()
        self._look()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, for what is not HTTP or beyond a bound: in OpenAI's shape, and read to the end."""
        refusal = self.conn.refusal or RefusedError(400, "this is not a valid HTTP/1.1 request.", code="invalid_http")
        self._answer_and_close(refusal)

    def shutdown(self) -> None:
        """uvicorn's. A request may be on its way already, and an end without an answer would be its client's loss.

        So the answer is sent first. Who did not ask sees that the connection ended (RFC 9112, 9.5 and 9.8).
        """
        if self.phase in (ConnectionPhase.HEAD, ConnectionPhase.IDLE):
            self._answer_and_close(self._last_words())
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        """asyncio's."""
        super().pause_writing()
        self._unwritten_since = self.loop.time()

    def resume_writing(self) -> None:
        """asyncio's."""
        super().resume_writing()
        self._unwritten_since = None

    def end_if_overdue(self, now: float) -> None:
        """Close the connection if its client takes longer than it may."""
        if self.transport is None:  # within the handshake, whose time asyncio bounds
            return
        seconds = now - self.since
        if self._unwritten_since is not None and now - self._unwritten_since > WRITE_SECONDS:
            self.transport.abort()
        elif self._last_until is not None:
            if now > self._last_until:
                self.transport.abort()
        elif self.phase is ConnectionPhase.REST and seconds > REST_SECONDS:
            self.transport.abort()
        elif self.phase is ConnectionPhase.HEAD and seconds > HEAD_SECONDS:
            if self.conn.has_begun:
                message = f"the request's headers did not come within {HEAD_SECONDS:g} s."
                self._answer_and_close(RefusedError(408, message, code="request_timeout"))
            else:
                self.transport.close()

    def _look(self) -> None:
        phase = self._phase()
        if phase is not self.phase:
            self.phase, self.since = phase, self.loop.time()
            self._rest = REST_BYTES

    def _phase(self) -> ConnectionPhase:
        answered = self.cycle is None or self.cycle.response_complete
        if self.conn.their_state is h11.SEND_BODY:
            return ConnectionPhase.REST if answered else ConnectionPhase.BODY
        if not answered:
            return ConnectionPhase.BUSY
        return ConnectionPhase.HEAD if self.cycle is None or self.conn.has_begun else ConnectionPhase.IDLE

    def _answer_and_close(self, refusal: RefusedError) -> None:
        if self.transport.is_closing() or self._last_until is not None:
            return
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way already
            return self.transport.close()
        headers = [("content-type", "application/json"), ("connection", "close"), ("content-length", len(refusal.body))]
        events = [
            h11.Response(
                status_code=refusal.status,
                headers=[(name, str(value)) for name, value in headers],
                reason=HTTPStatus(refusal.status).phrase.encode(),
            ),
            h11.Data(data=refusal.body),
            h11.EndOfMessage(),
        ]
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        if self.cycle is not None:  # an app that reads the body is told that nobody waits for its answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._last_until, self._rest = self.loop.time() + LAST_SECONDS, LAST_BYTES
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
