"""A real Redis or Valkey server on a free port, which tests can kill, stop for a while and start again."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.server import free_port

START_SECONDS = 20


def binary() -> str:
    """Debian's. Without it the tests are skipped, but in CI they fail."""
    path = shutil.which("valkey-server") or shutil.which("redis-server")
    if path is None:
        hint = "no valkey-server and no redis-server: `apt-get install redis-server`, and the tests of it run"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(hint)
    return str(path)


class LimitsDatabase:
    """The server's process; it keeps nothing on disk, so that a killed one has lost its data."""

    def __init__(self, folder: Path, password: str = "", tls: tuple[Path, Path] | None = None):
        self._folder = folder
        self._password = password
        self._tls = tls
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        """For --limits-storage."""
        where = f"{f':{self._password}@' if self._password else ''}127.0.0.1:{self.port}/0"
        return f"rediss://{where}?ssl_ca_certs={self._tls[1]}" if self._tls else f"redis://{where}"

    @property
    def client(self) -> redis.Redis:
        """To look into it."""
        return redis.Redis.from_url(self.url)

    def start(self) -> None:
        """Up when this returns."""
        options = ["--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        if self._tls:
            key, certificate = map(str, self._tls)
            options += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            options += ["--tls-key-file", key, "--tls-cert-file", certificate, "--tls-ca-cert-file", certificate]
        else:
            options += ["--port", str(self.port)]
        options += ["--unixsocket", str(self._folder / "socket")]
        options += ["--requirepass", self._password] if self._password else []
        self.process = subprocess.Popen([binary(), *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(redis.ConnectionError):
                self.client.ping()
                return
            assert time.monotonic() < deadline and self.process.poll() is None, "the database does not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """As the kernel does it."""
        self.process.kill()
        self.process.wait()

    def hang(self) -> None:
        """It takes connections and answers nothing, until `go_on`."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `hang`."""
        self.process.send_signal(signal.SIGCONT)

    def pass_time(self, seconds: float) -> None:
        """Bring forward the end of all that it keeps: the windows are counted by these alone."""
        with self.client as client:
            for key in client.scan_iter():
                left = int(client.pttl(key)) - round(1000 * seconds)
                client.pexpire(key, left) if left > 0 else client.delete(key)


@contextlib.contextmanager
def limits_database(folder: Path, password: str = "", tls: tuple[Path, Path] | None = None) -> Iterator[LimitsDatabase]:
    """It runs; it is killed at the end. `tls` are a key and its own certificate."""
    database = LimitsDatabase(folder, password, tls)
    try:
        yield database
    finally:
        database.kill()
