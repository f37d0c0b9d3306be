"""HTTP as bytes on sockets, for what no client library sends."""

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

START = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"  # a head that is not at its end


def place(address: str) -> tuple[str, int]:
    """Host and port of a URL."""
    parts = urlsplit(address)
    return str(parts.hostname), int(parts.port or 0)


def answer_to(address: str, *pieces: bytes) -> bytes:
    """All that comes back, to the connection's end."""
    with socket.create_connection(place(address), timeout=60) as connection:
        answer = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for piece in pieces:
                connection.sendall(piece)
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
        return answer


def error_of(answer: bytes) -> tuple[int, dict]:
    """The status of the last answer in these bytes, and its error in OpenAI's shape."""
    last = [match.start() for match in re.finditer(rb"HTTP/1\.1 \d{3} ", answer)][-1]
    head, _, body = answer[last:].partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


@contextlib.contextmanager
def opened(address: str, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections, on each of which this was sent."""
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(place(address), timeout=30))
            connections.append(connection)
            with contextlib.suppress(OSError):
                connection.sendall(sent)
        yield connections


def is_open(connection: socket.socket) -> bool:
    """Whether the other end has not closed it."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
