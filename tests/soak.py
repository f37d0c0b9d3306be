"""Mixed load with faults injected, for as long as one likes: what is answered, what is wrong, and what memory does.

python -m tests.soak --minutes 60

Eight clients ask the demo, each about a picture that nobody has sent before; one more asks about the example pictures,
whose answers are known. Meanwhile, in turn: broken and oversized pictures, streams whose clients go, header lines
without an end, and the engine killed with SIGKILL. It ends with 1 where an answer was wrong, a request hung or failed
other than it should, or memory went on growing.
"""

import argparse
import base64
import io
import itertools
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from qwen_vqa.serving import DEMO_IMAGES
from tests.attack import connections, engine, pictures, watch
from tests.server import serving

MODEL = "qwen-vqa-demo"
CLIENTS = 8
TIMEOUT = 120.0
GROWTH_MIB = 600.0
EXAMPLES = json.loads((DEMO_IMAGES / "examples.json").read_text())
# As it should be while the engine starts again, or where the limits say so.
REFUSED = (429, 503)
COLUMNS = ("minute", "pictures", "answered", "refused", "faults", "worst /health", "MiB resident", "MiB unique")


class Soak:
    """The clients of one run, and what they found."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.stopped = threading.Event()
        self.ends: Counter[str] = Counter()
        self.faults: list[str] = []
        self._numbers = itertools.count()

    def distinct(self) -> None:
        """A client that asks about one new picture after the other."""
        with httpx.Client(timeout=TIMEOUT) as client:
            while not self.stopped.is_set():
                number = next(self._numbers)
                self._ask(client, new_picture(number), "What is in the picture?", None)
                self.ends["pictures"] = max(self.ends["pictures"], number + 1)

    def known(self) -> None:
        """A client that knows the answers."""
        with httpx.Client(timeout=TIMEOUT) as client:
            for example in itertools.cycle(EXAMPLES):
                if self.stopped.wait(0.5):
                    return
                data = (DEMO_IMAGES / example["image"]).read_bytes()
                self._ask(client, data, example["question"], example["answer"])

    def gone(self) -> list[str]:
        """Clients that leave in the middle of their streams."""
        body = {"model": MODEL, "stream": True, "max_tokens": 400, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": "hi"}]
        for _ in range(20):
            with httpx.stream("POST", f"{self.address}/v1/chat/completions", json=body, timeout=TIMEOUT) as reply:
                next(reply.iter_bytes(), None)
        return []

    def _ask(self, client: httpx.Client, data: bytes, question: str, answer: str | None) -> None:
        url = f"data:;base64,{base64.b64encode(data).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        body = {"model": MODEL, "max_tokens": 24, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        try:
            reply = client.post(f"{self.address}/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            self.faults.append(repr(error))
            return
        if reply.status_code in REFUSED:
            self.ends["refused"] += 1
            self.stopped.wait(1)
        elif reply.status_code != 200:
            self.faults.append(f"{reply.status_code}: {reply.text[:200]}")
        elif answer not in (None, text := reply.json()["choices"][0]["message"]["content"]):
            self.faults.append(f"{question} was answered with {text!r} in place of {answer!r}")
        else:
            self.ends["answered"] += 1


def new_picture(number: int) -> bytes:
    """A picture of its own for each number, 640 x 480."""
    small = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((640, 480)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def memory(pid: int) -> tuple[float, float]:
    """Resident and unique MiB of the process and all below it."""
    found = [process.memory_full_info() for process in [psutil.Process(pid), *psutil.Process(pid).children(True)]]
    return sum(one.rss for one in found) / watch.MIB, sum(one.uss for one in found) / watch.MIB


def run(minutes: float, kill_every: int, address: str, pid: int) -> int:
    """Load and faults for so long; prints a row a minute."""
    soak = Soak(address)
    faults = (soak.gone, partial(pictures.hostile, address), partial(connections.endless_headers, address))
    killed = partial(engine.killed_engine, address, pid)
    threads = [threading.Thread(target=soak.distinct, daemon=True) for _ in range(CLIENTS)]
    threads.append(threading.Thread(target=soak.known, daemon=True))
    for thread in threads:
        thread.start()
    print(" | ".join(COLUMNS), flush=True)
    began, sizes = time.monotonic(), []
    for minute in itertools.count(1):
        with watch.health(address) as health:
            inject = faults[minute % len(faults)] if minute % kill_every else killed
            soak.faults += inject()
            while time.monotonic() - began < 60 * min(minute, minutes):
                time.sleep(0.2)
        sizes.append(memory(pid))
        soak.faults += health.faults
        counts = [str(soak.ends[name]) for name in ("pictures", "answered", "refused")]
        row = [str(minute), *counts, str(len(soak.faults)), f"{health.worst:.2f} s"]
        print(" | ".join([*row, *(f"{size:,.0f}" for size in sizes[-1])]), flush=True)
        if minute >= minutes:
            break
    soak.stopped.set()
    for thread in threads:
        thread.join(TIMEOUT)
        if thread.is_alive():
            soak.faults.append("a request hung")
    grown = max(unique for _, unique in sizes) - sizes[0][1]
    if grown > GROWTH_MIB:
        soak.faults.append(f"memory grew by {grown:.0f} MiB after the first minute, {GROWTH_MIB:.0f} are allowed")
    for fault in soak.faults[:20]:
        print(f"  BROKEN: {fault}", flush=True)
    return 1 if soak.faults else 0


def main() -> int:
    """Start the demo, and load it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="(default: %(default)s)")
    parser.add_argument(
        "--kill-every", type=int, default=5, metavar="MINUTES", help="the engine, so often (default: %(default)s)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "server.log") as server:
        return run(args.minutes, args.kill_every, server.url.removesuffix("/v1"), server.process.pid)


if __name__ == "__main__":
    sys.exit(main())
