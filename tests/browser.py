"""A real Chromium for the tests, and a server's address whose server can go away."""

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, sync_playwright

# A camera that shows a moving pattern, for pages that take pictures.
ARGUMENTS = ["--no-sandbox", "--use-fake-device-for-media-stream"]
NAMES = ("chromium", "chromium-browser", "google-chrome")
HINT = "no Chromium: `apt-get install chromium`, and the tests of the pages run"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's, driven by playwright. Without it the tests are skipped, but in CI they fail."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(HINT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Wire:
    """An address of its own that leads to a server, and can be laid to another, or cut."""

    port: int
    target: tuple[str, int] | None = None
    _open: list[socket.socket] = field(default_factory=list)

    @property
    def url(self) -> str:
        """With /v1, as a server's."""
        return f"http://127.0.0.1:{self.port}/v1"

    def lay(self, url: str) -> None:
        """To this server from now on."""
        self.cut()
        parts = urlsplit(url)
        self.target = (str(parts.hostname), int(parts.port or 80))

    def cut(self) -> None:
        """No server any more: what runs breaks off, and nothing new is taken."""
        self.target = None
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def carry(self, client: socket.socket) -> None:
        """One connection, to its end."""
        if self.target is None:
            client.close()
            return
        server = socket.create_connection(self.target)
        self._open += [client, server]
        ends = ((client, server), (server, client))
        threads = [threading.Thread(target=_pump, args=pair, daemon=True) for pair in ends]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
        server.close()


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    """A wire that leads nowhere yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        laid = Wire(listener.getsockname()[1])
        threading.Thread(target=_accept, args=(listener, laid), daemon=True).start()
        yield laid
        laid.cut()


def _accept(listener: socket.socket, laid: Wire) -> None:
    with contextlib.suppress(OSError):  # the listener is closed at the end
        while True:
            threading.Thread(target=laid.carry, args=(listener.accept()[0],), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
