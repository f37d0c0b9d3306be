"""A real `qwen-vqa serve` for the tests, and OpenAI's own client to it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from openai import OpenAI

START_SECONDS = 300
SERVE = [sys.executable, "-m", "qwen_vqa.serving.cli", "serve"]


@dataclass(frozen=True)
class Server:
    """A running server: its address with /v1, and what it printed."""

    url: str
    log: Path

    @property
    def client(self) -> OpenAI:
        """OpenAI's SDK, pointed at it, with retries off so that errors are seen."""
        return OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=300)


@contextlib.contextmanager
def serving(log: Path, *arguments: str) -> Iterator[Server]:
    """Start `qwen-vqa serve` with these arguments on a free port; it is stopped at the end."""
    port = free_port()
    # The tests' server leaves the second core to the tests.
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*SERVE, *arguments, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log)
            yield Server(f"http://127.0.0.1:{port}/v1", log)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(timeout=60)
        assert status == 0, f"the server ended with {status}:\n{log.read_text()[-3000:]}"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(process: subprocess.Popen, health: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server stopped with {process.returncode}:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(health).status_code == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"the server was not ready after {START_SECONDS} s:\n{log.read_text()[-3000:]}")
