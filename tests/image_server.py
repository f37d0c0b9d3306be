"""A web server on loopback for the tests of fetching; it remembers every request that reached it."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from tests.tiny import picture

HOPPER = (Path(__file__).parent / "images" / "hopper.jpg").read_bytes()
DRIP_SECONDS = 0.2


def png(seed: int = 1) -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class ImageServer:
    """Its port, and the paths that were asked for."""

    port: int
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def url(self, path: str = "/hopper.jpg", host: str = "127.0.0.1") -> str:
        """The URL of one of the paths that `_Handler` knows."""
        return f"http://{host}:{self.port}{path}"


class _Handler(BaseHTTPRequestHandler):
    """/hopper.jpg, /N.png, /redirect?TO, /garbage?BYTES, /typed?TYPE, /status/N, and ways to misbehave, named below."""

    def do_GET(self) -> None:
        self.server.record.requests.append(self.path)  # type: ignore[attr-defined]
        self.server.record.headers.append(dict(self.headers))  # type: ignore[attr-defined]
        path, _, query = self.path.partition("?")
        name = path.strip("/")
        if name.endswith(".png"):
            self._answer(png(int(name.removesuffix(".png"))), "image/png")
        elif name == "redirect":
            self._redirect(unquote(query))
        elif name == "loop":
            self._redirect("/loop")
        elif name == "big":
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(10**9))
            self.end_headers()
        elif name == "chunked":
            self._endless()
        elif name == "drip":
            self._drip()
        elif name == "silent":
            time.sleep(3)
        elif name == "garbage":
            self.wfile.write(unquote(query).encode("latin-1"))
            self.close_connection = True
        elif name == "page":
            self._answer(b"<html>" + b" " * 10**6, "text/html")
        elif name == "typed":
            self._answer(HOPPER, unquote(query))
        elif name == "gzip":
            self._answer(HOPPER, "image/jpeg", ("Content-Encoding", "gzip"))
        elif name == "lie":
            self._answer(b"<html>" + b" " * 50_000, "image/png")
        elif name.startswith("status/"):
            self._answer(b"no", "text/plain", status=int(name.split("/")[1]))
        else:
            self._answer(HOPPER, "image/jpeg")

    def _answer(self, body: bytes, kind: str, *headers: tuple[str, str], status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        self._write(body)

    def _redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _endless(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        for _ in range(10_000):
            if not self._write(HOPPER):
                return

    def _drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.end_headers()
        for byte in HOPPER[:50]:
            if not self._write(bytes([byte])):
                return
            time.sleep(DRIP_SECONDS)

    def _write(self, data: bytes) -> bool:
        try:
            self.wfile.write(data)
        except OSError:  # the client had seen enough
            return False
        return True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the tests' screen."""


@contextmanager
def image_server() -> Iterator[ImageServer]:
    """A server on a free port of 127.0.0.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.record = ImageServer(server.server_address[1])  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.record  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
