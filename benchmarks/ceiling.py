"""What the client itself can do: the workload against a server without a model."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qwen_vqa.benchmarks.client import Target
from qwen_vqa.benchmarks.null_server import MODEL
from qwen_vqa.benchmarks.processes import run_shares
from qwen_vqa.benchmarks.share import Share
from qwen_vqa.benchmarks.workload import WorkloadSpec, conversations

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
    """Run single-turn requests of this spec against a null server, in one client process."""
    spec = replace(spec, models=((MODEL, 1.0),), multi_turn=0.0)
    with null_server() as url:
        share = Share(Target(url, None, 60.0), tuple(conversations(spec, 0, requests)), None, users)
        outcome = run_shares([share], lambda _: None, lambda: None)
    cpu = outcome.cpu_seconds[0] / requests
    tokens = sum(record.output_tokens for record in outcome.records) / requests
    return Ceiling(cpu * 1000, 1 / cpu, requests / outcome.seconds, tokens)


@contextlib.contextmanager
def null_server() -> Iterator[str]:
    """A null server in a process of its own; gives its address with /v1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "qwen_vqa.benchmarks.null_server", "--port", str(port)])
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()
