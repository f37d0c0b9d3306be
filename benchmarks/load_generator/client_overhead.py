"""What the client itself can do: the workload against a server without a model."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qwen_vqa.benchmarks.load_generator.client_processes import run_shares
from qwen_vqa.benchmarks.load_generator.conversation_runner import Share
from qwen_vqa.benchmarks.load_generator.null_server import MODEL
from qwen_vqa.benchmarks.load_generator.records import Record
from qwen_vqa.benchmarks.load_generator.streaming_client import Target
from qwen_vqa.benchmarks.load_generator.workload import WorkloadSpec, conversations
from qwen_vqa.plugin.command.sigterm import ended_by_sigterm
from qwen_vqa.plugin.errors import UserError

REQUESTS, USERS = 200, 32
START_SECONDS = 20.0


@dataclass(frozen=True)
class Ceiling:
    """What one client process does for one request, and at most in a second.

    `requests_per_second` is 1 / CPU seconds per request: what a process could do with a core of its own and a server
    that never lets it wait. `measured_per_second` is what it did beside the null server, which needs CPU as well.
    """

    cpu_ms_per_request: float
    requests_per_second: float
    measured_per_second: float
    output_tokens: float


def measure_ceiling(spec: WorkloadSpec, requests: int = REQUESTS, users: int = USERS) -> Ceiling:
    """Run single-turn requests of this spec against a null server, in one client process.

    Raises:
        UserError: the null server did not answer all of them.
        KeyboardInterrupt: Ctrl-C.
    """
    spec = replace(spec, models=((MODEL, 1.0),), multi_turn=0.0)
    with null_server() as url:
        share = Share(Target(url, None, 60.0), tuple(conversations(spec, 0, requests)), None, users)
        outcome = run_shares([share], lambda _: None, lambda: None)
    if outcome.interrupted:
        raise KeyboardInterrupt
    _check(outcome.records, requests)
    cpu = outcome.cpu_seconds[0] / requests
    tokens = sum(record.output_tokens for record in outcome.records) / requests
    return Ceiling(cpu * 1000, 1 / cpu, requests / outcome.seconds, tokens)


def _check(records: list[Record], requests: int) -> None:
    failed = [record for record in records if record.error]
    if failed or len(records) != requests:
        example = f", for instance {failed[0].error}: {failed[0].detail}" if failed else ""
        raise UserError(
            f"the client itself could not be measured: of {requests} requests to a server of our own on 127.0.0.1, "
            f"{len(failed)} failed and {requests - len(records)} were not sent{example}."
        )


@contextlib.contextmanager
def null_server(*flags: str) -> Iterator[str]:
    """A null server in a process of its own; gives its address with /v1.

    Raises:
        UserError: it did not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "qwen_vqa.benchmarks.load_generator.null_server",
        "--port",
        str(port),
        "--until-eof",
        *flags,
    ]
    # A session of its own: a terminal's Ctrl-C is for us, who then stop it. Where we are killed, its input ends.
    popen = subprocess.Popen(command, start_new_session=True, stdin=subprocess.PIPE)
    with ended_by_sigterm(), popen as process:
        try:
            _wait(process, port)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _wait(process: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    ended = f"ended with {process.returncode}" if process.returncode is not None else "did not listen"
    raise UserError(f"the server that shows what the client itself can do {ended} within {START_SECONDS:g} s.")
