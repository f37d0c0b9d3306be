"""A server for the time of a check or a measurement: `qwen-vqa serve` as its own process, and the wait for it."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import httpx

from qwen_vqa.plugin.command.installed_command import installed_command
from qwen_vqa.plugin.command.sigterm import ended_by_sigterm
from qwen_vqa.plugin.errors import UserError

START_SECONDS = 900.0
STOP_SECONDS = 60.0
LOOK_SECONDS = 0.2


@contextlib.contextmanager
def started_server(
    arguments: Sequence[str],
    stdout: int | IO[str] | None = None,
    stderr: int | IO[str] | None = None,
    environment: Mapping[str, str] | None = None,
    start_seconds: float = START_SECONDS,
) -> Iterator[tuple[str, subprocess.Popen]]:
    """`qwen-vqa serve` with these arguments on a free port of this machine, once it is ready: its address, without
    /v1, and the process. It is told to stop at the end.

    Raises:
        UserError: it ended before it was ready, or was not ready in time.
    """
    port = free_port()
    command = installed_command("serve", *arguments, "--port", str(port))
    address = f"http://127.0.0.1:{port}"
    with ended_by_sigterm():
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)
        try:
            wait_until_ready(process, address, start_seconds)
            yield address, process
        finally:
            process.terminate()
            process.wait(timeout=STOP_SECONDS)


def wait_until_ready(
    process: subprocess.Popen, address: str, seconds: float = START_SECONDS, path: str = "/ready"
) -> None:
    """Return when GET `path` is 200; servers other than ours have no /ready.

    Raises:
        UserError: the process ended, or so many seconds went by.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"the server stopped with status {process.returncode}; its message is above.")
        with contextlib.suppress(httpx.HTTPError):
            # On this machine: whose certificate it is does not matter.
            if httpx.get(f"{address}{path}", verify=False).status_code == 200:
                return
        time.sleep(LOOK_SECONDS)
    raise UserError(f"the server was not ready after {seconds:g} s.")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
