"""uvicorn with an acceptor of its own, which counts connections before their TLS and before their first byte.

asyncio's server, which uvicorn takes, accepts whatever comes. Written for uvicorn 0.30 to 0.54 (`startup`, `servers`,
`server_state`, `lifespan.state`).
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.http.connections import Connections
from qwen_vqa.serving.http.http_protocol import HEAD_BYTES, HEAD_SECONDS, HEADERS, BoundedProtocol
from qwen_vqa.serving.observability.log import say
from qwen_vqa.serving.observability.request_record import WATCHED

LOOK_SECONDS = 0.5
AT_ONCE = 16
# Where no file can be opened, for one that is closed.
PAUSE_SECONDS = 0.1
RESERVE = "qwen_vqa_reserve"
RETRY_SECONDS = 5


class BoundedServer(uvicorn.Server):
    """A server on one listening socket, which is closed with it. Signals are others' business.

    Args:
        config: of uvicorn; its app is to stand in `OnReserve`.
        sock: listening already.
        last_words: for connections that it closes when it ends.
        closed: called when it takes no more connections, and another process may.
        head_bytes, headers: largest head of a request, and how many headers it may have.
        at_once: connections taken in one go; where other processes take from the same socket, 1 spreads them.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        sock: socket.socket,
        connections: Connections,
        last_words: Callable[[], RefusedError],
        closed: Callable[[], None] = lambda: None,
        head_bytes: int = HEAD_BYTES,
        headers: int = HEADERS,
        at_once: int = AT_ONCE,
    ):
        super().__init__(config)
        self.connections = connections
        self._sock = sock
        self._last_words = last_words
        self._closed = closed
        self.at_once = at_once
        self._head = {"head_bytes": head_bytes, "headers": headers}

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, which with no sockets starts no server of asyncio's."""
        await super().startup(sockets=[])
        if self.started:
            self.servers.append(_Acceptor(self, self._sock))  # type: ignore[arg-type] # close and wait_closed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, which waits for the connections that there are."""
        for server in self.servers:
            server.close()
        self._closed()
        await super().shutdown(sockets)

    def protocol(self, address: str | None) -> BoundedProtocol:
        """For a connection that is taken now."""
        return BoundedProtocol(
            address,
            self.connections.remove,
            self._last_words,
            config=self.config,
            server_state=self.server_state,
            app_state={**self.lifespan.state, RESERVE: self.connections.full},
            **self._head,
        )


class _Acceptor:
    """Takes connections, and closes those that take too long; in the place of asyncio's `Server`."""

    def __init__(self, server: BoundedServer, sock: socket.socket):
        self._server = server
        self._connections = server.connections
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._accept)
        self._looking = asyncio.create_task(self._look())

    def close(self) -> None:
        """Take no more; those that there are go on."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    async def wait_closed(self) -> None:
        """When none is left."""
        self._looking.cancel()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._connections.look(self._loop.time())

    def _accept(self) -> None:
        # Few: what came on the others is read before the next are taken.
        for _ in range(self._server.at_once):
            try:
                taken, name = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):  # another process took it, or the client is gone
                return
            except OSError as error:
                say(f"connections have to wait: {error.strerror}")
                self._connections.make_room(self._loop.time())
                self._loop.remove_reader(self._sock)
                self._loop.call_later(PAUSE_SECONDS, self._resume)
                return
            if not self._connections.make_room(self._loop.time()):
                taken.close()
                continue
            protocol = self._server.protocol(name[0] if isinstance(name, tuple) else None)
            self._connections.add(protocol, asyncio.create_task(self._connect(protocol, taken)))

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept)

    async def _connect(self, protocol: BoundedProtocol, taken: socket.socket) -> None:
        tls = self._server.config.ssl
        options: dict[str, Any] = {"ssl": tls, "ssl_handshake_timeout": HEAD_SECONDS} if tls else {}
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, taken, **options)
        except (OSError, asyncio.CancelledError):  # TLS that fails, a client that is gone, or one that gave way
            taken.close()
            self._connections.remove(protocol)


class OnReserve:
    """Answers on the connections beyond the bound only whoever watches the server; others are told to come again."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "lifespan" or not scope["state"].get(RESERVE) or path in WATCHED:
            return await self.app(scope, receive, send)
        message = "The server has as many connections as it takes. Try again."
        refusal = RefusedError(503, message, "server_error", "service_unavailable", retry_after=RETRY_SECONDS)
        await refusal.send(send, close=True)
