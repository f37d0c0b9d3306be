"""What an attack costs the others: the longest wait for /health and for a good request, and the server's memory."""

import base64
import contextlib
import threading
import time
from collections.abc import Callable

import httpx
import psutil

from qwen_vqa.serving import DEMO_IMAGES

# Another address than the attacker's, as others have it.
GOOD_ADDRESS = "127.0.0.2"
TIMEOUT = 60.0
MIB = 2**20


class Asker(threading.Thread):
    """Asks again and again, for the time of a `with`; `worst` is the longest that an answer took, in seconds.

    Args:
        ask: one request; returns whether the answer is what it should be.
        pause: seconds between two.
    """

    def __init__(self, ask: Callable[[], bool], pause: float):
        super().__init__(daemon=True)
        self._ask, self._pause = ask, pause
        self._stopped = threading.Event()
        self.worst = 0.0
        self.asked = 0
        self.faults: list[str] = []

    def __enter__(self) -> "Asker":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """Thread's."""
        while not self._stopped.wait(self._pause):
            began = time.monotonic()
            try:
                if not self._ask():
                    self.faults.append("another answer than it should be")
            except httpx.HTTPError as error:
                self.faults.append(repr(error))
            self.worst = max(self.worst, time.monotonic() - began)
            self.asked += 1


def health(address: str) -> Asker:
    """Asks /health as an orchestrator does: each time on a new connection."""
    return Asker(lambda: httpx.get(f"{address}/health", timeout=TIMEOUT, verify=False).status_code == 200, 0.05)


def good_request(address: str, model: str, refused_too: bool = False) -> Asker:
    """Asks about a picture from another address, on one connection; with `refused_too` it may be answered with 503."""
    data = base64.b64encode((DEMO_IMAGES / "shapes.png").read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "What color is the ring?"},
    ]
    body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
    client = httpx.Client(transport=httpx.HTTPTransport(local_address=GOOD_ADDRESS), timeout=TIMEOUT)
    statuses = (200, 503) if refused_too else (200,)
    return Asker(lambda: client.post(f"{address}/v1/chat/completions", json=body).status_code in statuses, 0.2)


class Memory(threading.Thread):
    """The memory of a process and all below it, in MiB, shared pages counted once: `now` and `peak`."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self._stopped = threading.Event()
        self.peak = 0.0

    def __enter__(self) -> "Memory":
        self.peak = self.now()
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self.join()

    def now(self) -> float:
        """Measured now."""
        total = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / MIB

    def run(self) -> None:
        """Thread's."""
        while not self._stopped.wait(0.5):
            self.peak = max(self.peak, self.now())
