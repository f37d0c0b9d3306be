"""Answers on the server's port while no server does: alive, not ready, come again."""

import asyncio
import contextlib
import socket
import time
from argparse import Namespace

import uvicorn
from starlette.types import Receive, Scope, Send

from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.http.bounded_server import BoundedServer, OnReserve
from qwen_vqa.serving.http.connections import Connections
from qwen_vqa.serving.process.listener import HTTP

LOADING = "The model is loading."
RETRY_SECONDS = 5
# OpenAI's SDK waits as long as it is told, up to a minute; told more, it comes back after half a second.
LONGEST_RETRY_SECONDS = 60
# A body is read before it is answered: closing on what is unread resets the connection, and the answer is lost.
BODY_BYTES = 64 * 2**20
BODY_SECONDS = 10.0
CLOSE_SECONDS = 2


def unavailable(reason: str, retry_after: float = RETRY_SECONDS) -> RefusedError:
    """503 with Retry-After, as OpenAI's SDK repeats it."""
    return RefusedError(503, reason, "server_error", "service_unavailable", retry_after=retry_after)


async def refuse(refusal: RefusedError, receive: Receive, send: Send) -> None:
    """Read what the client sends, within bounds, and answer with the refusal."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_read(receive), BODY_SECONDS)
    await refusal.send(send, close=True)


async def _read(receive: Receive) -> None:
    size = 0
    while size < BODY_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            return


class StandIn:
    """The stand-in on the supervisor's socket, which it shares with the server's process.

    Args:
        sock: bound and listening; it stays open when the stand-in stops.
        flags: of TLS, as `listen_flags` has them.
    """

    def __init__(self, sock: socket.socket, flags: Namespace):
        self.reason = ""
        self.ready_at: float | None = None  # by time.monotonic(), as far as the last start tells
        self._started_at = 0.0
        self._sock = sock
        self._flags = flags
        self._server: BoundedServer | None = None
        self._task: asyncio.Task | None = None

    async def start(self, reason: str) -> None:
        """Answer; with another reason if it answers already."""
        self.reason = reason
        if self._server is not None:
            return
        config = uvicorn.Config(
            OnReserve(self._answer),
            interface="asgi3",
            http=HTTP,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            ssl_keyfile=self._flags.ssl_keyfile,
            ssl_certfile=self._flags.ssl_certfile,
            ssl_ca_certs=self._flags.ssl_ca_certs,
            ssl_cert_reqs=self._flags.ssl_cert_reqs,
            ssl_ciphers=self._flags.ssl_ciphers,
        )
        connections = Connections(self._flags)
        self._server = BoundedServer(config, self._sock.dup(), connections, self._refusal)
        self._task = asyncio.create_task(self._server.serve())

    def expect(self, seconds: float | None) -> None:
        """A start begins now, and the last one took so long; None where there was none."""
        self._started_at = time.monotonic()
        self.ready_at = None if seconds is None else self._started_at + seconds

    def _refusal(self) -> RefusedError:
        """With the time that is left, counted by the last start."""
        if self.ready_at is None:
            return unavailable(self.reason)
        now = time.monotonic()
        left = self.ready_at - now
        told = f"{self.reason} It takes about {self.ready_at - self._started_at:.0f} s, of which"
        return unavailable(
            f"{told} {now - self._started_at:.0f} have passed.",
            min(max(left, RETRY_SECONDS), LONGEST_RETRY_SECONDS),
        )

    async def stop(self) -> None:
        """Leave the port to the server; who is being answered still is."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        await self._task
        self._server = self._task = None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].removeprefix(scope.get("root_path", "")) == "/health":
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            return await send({"type": "http.response.body", "body": b""})
        await refuse(self._refusal(), receive, send)
