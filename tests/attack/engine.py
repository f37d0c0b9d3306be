"""The engine killed under load. Returns what it found that should not be."""

import contextlib
import json
import threading
import time
from collections import Counter

import httpx
import psutil

from qwen_vqa.serving.process.lifecycle import ENGINE_DIED

RESTART_SECONDS = 180
CLIENTS = 20


def killed_engine(address: str, pid: int) -> list[str]:
    """kill -9 of the engine while twenty clients ask on connections that stay, half of them for streams."""
    ends: Counter[str] = Counter()
    stop = threading.Event()

    def ask(number: int) -> None:
        body = {"model": "qwen-vqa-demo", "max_tokens": 40, "messages": [{"role": "user", "content": "hi"}]}
        with httpx.Client(timeout=60) as client:
            while not stop.wait(number % 10 * 0.01):
                try:
                    reply = client.post(f"{address}/v1/chat/completions", json=body | {"stream": number % 2 == 0})
                    ends[_kind(reply)] += 1
                except httpx.TransportError as error:
                    ends[repr(error)] += 1

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    tree = psutil.Process(pid).children(recursive=True)
    next(process for process in tree if "EngineCore" in process.name()).kill()
    time.sleep(5)
    stop.set()
    for thread in threads:
        thread.join()
    faults = [f"{number} ended with {kind}" for kind, number in ends.items() if kind not in ("answered", "refused")]
    if not ends["refused"]:
        faults.append("nobody was refused")
    deadline = time.monotonic() + RESTART_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/ready", timeout=10).status_code == 200:
                return faults
        time.sleep(0.2)
    return [*faults, f"not ready again after {RESTART_SECONDS} s"]


def _kind(reply: httpx.Response) -> str:
    last = [line for line in reply.text.splitlines() if line][-1].removeprefix("data: ")
    error = json.loads(last).get("error") if last.startswith("{") else None
    if error is None:
        return "answered" if reply.status_code == 200 else f"{reply.status_code} without an error"
    if error["message"].startswith(ENGINE_DIED) and (reply.status_code, "retry-after" in reply.headers) in (
        (503, True),
        (200, False),  # in a stream
    ):
        return "refused"
    return f"{reply.status_code}: {error['message']}"
