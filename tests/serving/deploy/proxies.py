"""nginx and HAProxy, as Debian has them, with the files of serving/deploy in front of servers of the tests."""

import contextlib
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.certificate import self_signed
from tests.server import free_port
from tests.tiny import REPOSITORY

DEPLOY = REPOSITORY / "serving" / "deploy"
NAMES = ("nginx", "haproxy")
# Where the files have the replicas.
REPLICAS = ("127.0.0.1:8000", "127.0.0.1:8001")
# Whoever runs the tests need not be root, and Debian's nginx has these in /var/lib.
NGINX_FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
START_SECONDS = 20


def binary(name: str) -> str:
    """Debian's. Without it the tests are skipped, but in CI they fail."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        hint = f"no {name}: `apt-get install {name}`, and the tests of serving/deploy run"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(hint)
    return str(path)


@dataclass(frozen=True)
class Configured:
    """A proxy's file with the test's ports and paths, and the command lines that go with it."""

    check: list[str]
    run: list[str]
    url: str
    trust: ssl.SSLContext


def configured(name: str, folder: Path, replicas: Sequence[str]) -> Configured:
    """The file of serving/deploy in `folder`, with a certificate, and `replicas` (HOST:PORT), one or two."""
    key, certificate = self_signed(folder)
    address = f"127.0.0.1:{free_port()}"
    trust = ssl.create_default_context(cafile=str(certificate))
    program = binary(name)
    if name == "nginx":
        text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
        text = _replaced(text, "listen 443", f"listen {address}")
        text = _replaced(text, "/etc/ssl/certs/qwen-vqa.pem", str(certificate))
        text = _replaced(text, "/etc/ssl/private/qwen-vqa.key", str(key))
        paths = "".join(f"\n    {path}_temp_path {folder / path};" for path in NGINX_FOLDERS)
        text = _replaced(text, "http {", f"http {{{paths}")
        file = folder / "nginx.conf"
        main = f"daemon off; pid {folder / 'nginx.pid'};"
        if os.geteuid() == 0:
            main += " user root;"  # its workers could not write into a folder of pytest's
        command = [program, "-e", "stderr", "-c", str(file), "-g", main]
        result = Configured([*command, "-t"], command, f"https://{address}", trust)
    else:
        text = (DEPLOY / "haproxy.cfg").read_text(encoding="utf-8")
        both = folder / "both.pem"
        both.write_bytes(certificate.read_bytes() + key.read_bytes())
        text = _replaced(text, "bind :443", f"bind {address}")
        text = _replaced(text, "/etc/haproxy/qwen-vqa.pem", str(both))
        file = folder / "haproxy.cfg"
        command = [program, "-db", "-f", str(file)]
        result = Configured([*command, "-c"], command, f"https://{address}", trust)
    file.write_text(_with_replicas(text, replicas), encoding="utf-8")
    return result


def _replaced(text: str, old: str, new: str) -> str:
    """Raises AssertionError where the file no longer says it: the test would use the machine's own."""
    assert old in text, old
    return text.replace(old, new)


def _with_replicas(text: str, replicas: Sequence[str]) -> str:
    lines = text.splitlines()
    for place, replica in zip(REPLICAS, (*replicas, None), strict=False):
        (number,) = (number for number, line in enumerate(lines) if place in line)
        lines[number] = "" if replica is None else lines[number].replace(place, replica)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    url: str
    trust: ssl.SSLContext
    log: Path

    def client(self) -> httpx.Client:
        """One that trusts its certificate."""
        return httpx.Client(base_url=self.url, verify=self.trust, timeout=120)

    def said(self, words: str) -> None:
        """Wait until its log has these words."""
        _until(lambda: words in self.log.read_text(encoding="utf-8"), f"{words!r} in {self.log}")


@contextlib.contextmanager
def proxy(name: str, folder: Path, *replicas: str) -> Iterator[Proxy]:
    """It runs, in front of one or two replicas (HOST:PORT)."""
    settings = configured(name, folder, replicas)
    log = folder / "proxy.log"
    with log.open("w") as output:
        process = subprocess.Popen(settings.run, stdout=output, stderr=subprocess.STDOUT)
    running = Proxy(settings.url, settings.trust, log)
    try:
        with running.client() as client:
            _until(lambda: _answers(client), f"an answer of {name}: {log.read_text(encoding='utf-8')}")
        yield running
    finally:
        process.terminate()
        process.wait(timeout=20)


def _answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/health").status_code > 0
    return False


def _until(condition, what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.05)
