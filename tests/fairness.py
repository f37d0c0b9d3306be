"""Does one key at ten times its limit slow another down? Two keys, a real server, the tiny model.

python -m tests.fairness

The quiet key asks one question after another, alone, then beside the flood, then alone again.
"""

import asyncio
import json
import os
import platform
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from openai import AsyncOpenAI, RateLimitError

from tests.server import serving
from tests.tiny import make_checkpoint

LIMIT = 60  # the flood's requests per minute, of which one runs at a time
TIMES = 10
ALONE_SECONDS, BESIDE_SECONDS = 10, 20
KEYS = {"quiet": "quiet-secret-0123456789", "flood": "flood-secret-0123456789"}
ENTRIES = [
    {"name": "quiet", "key": KEYS["quiet"]},
    {"name": "flood", "key": KEYS["flood"], "requests_per_minute": LIMIT, "running": 1},
]


@dataclass
class Seen:
    """What the two keys saw: seconds of the quiet one's requests, and what became of the flood's."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    flood: Counter = field(default_factory=Counter)


async def watch(
    url: str,
    keys: dict[str, str],
    alone_seconds: float,
    beside_seconds: float,
    flood_per_minute: float,
    at_least: int = 1,
) -> Seen:
    """Run both keys against a server that knows them as `quiet` and `flood`.

    Each part lasts so many seconds, or longer where the quiet key has not been answered `at_least` times by then.
    """
    quiet, flood = (
        AsyncOpenAI(base_url=url, api_key=keys[name], max_retries=0, timeout=60) for name in ("quiet", "flood")
    )
    seen = Seen()
    for _ in range(5):
        await ask(quiet)  # what only the first requests pay
    await _ask_for(quiet, alone_seconds, seen.alone, at_least)
    stop = asyncio.Event()
    flooding = asyncio.create_task(_flood(flood, flood_per_minute, seen.flood, stop))
    await _ask_for(quiet, beside_seconds, seen.beside, at_least)
    stop.set()
    await flooding
    await _ask_for(quiet, alone_seconds, seen.alone, at_least)
    return seen


async def ask(client: AsyncOpenAI) -> None:
    """One question, 32 tokens of answer."""
    await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "what is in the picture?"}],
        max_tokens=32,
        extra_body={"ignore_eos": True},
    )


async def _ask_for(client: AsyncOpenAI, seconds: float, took: list[float], at_least: int) -> None:
    end, enough = time.monotonic() + seconds, len(took) + at_least
    while (started := time.monotonic()) < end or len(took) < enough:
        await ask(client)
        took.append(time.monotonic() - started)


async def _flood(client: AsyncOpenAI, per_minute: float, became: Counter, stop: asyncio.Event) -> None:
    async def one() -> None:
        try:
            await ask(client)
            became["answered"] += 1
        except RateLimitError:
            became["429"] += 1

    sent = []
    while not stop.is_set():  # at its own pace, whatever becomes of them
        sent.append(asyncio.create_task(one()))
        await asyncio.sleep(60 / per_minute)
    await asyncio.gather(*sent)


def milliseconds(took: list[float], percentile: float) -> float:
    """A percentile of these seconds, in ms."""
    return float(np.percentile(took, percentile)) * 1000


def main() -> None:
    """Start the server, watch, and print what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        keys_file = Path(folder) / "keys.json"
        keys_file.write_text(json.dumps({"keys": ENTRIES}))
        checkpoint = make_checkpoint(Path(folder) / "tiny")
        arguments = [str(checkpoint), "--api-keys-file", str(keys_file)]
        with serving(Path(folder) / "log", *arguments) as server:
            seen = asyncio.run(watch(server.url, KEYS, ALONE_SECONDS, BESIDE_SECONDS, TIMES * LIMIT))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
    print(f"the flood sends {TIMES} times its {LIMIT} requests a minute")
    print(f"flood: {seen.flood['answered']} answered, {seen.flood['429']} refused with 429")
    for name, took in {"alone": seen.alone, "beside the flood": seen.beside}.items():
        print(
            f"quiet key {name}: {len(took)} requests, "
            f"p50 {milliseconds(took, 50):.0f} ms, p95 {milliseconds(took, 95):.0f} ms"
        )
    print(f"p95 beside / alone: {milliseconds(seen.beside, 95) / milliseconds(seen.alone, 95):.2f}")


if __name__ == "__main__":
    main()
