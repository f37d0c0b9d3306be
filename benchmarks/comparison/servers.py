"""Start a candidate, wait until it answers, stop it and all that it started."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from qwen_vqa.benchmarks.comparison.candidates import Launch
from qwen_vqa.plugin.command.sigterm import ended_by_sigterm
from qwen_vqa.plugin.errors import UserError

START_SECONDS = 900
STOP_SECONDS = 60


@contextlib.contextmanager
def running(launch: Launch, log: Path) -> Iterator[str]:
    """Start it, wait until it lists its models, and give its address with /v1.

    Raises:
        UserError: it ended or was not ready in time; its log is named.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as output, ended_by_sigterm():
        process = subprocess.Popen(
            [*launch.command, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | launch.variables,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}/v1"
            _wait(process, url, log)
            yield url
        finally:
            _stop(process)


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"the server ended with {process.returncode}; see {log}.")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/models", timeout=5):
            return
        time.sleep(1)
    raise UserError(f"the server was not ready after {START_SECONDS} s; see {log}.")


def _stop(process: subprocess.Popen) -> None:
    """Its session: an engine's process may outlive the one that was started."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
