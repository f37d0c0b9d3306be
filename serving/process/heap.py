"""The API process gives freed memory back: the bodies and pictures of its requests would leave gigabytes in its heap.

glibc keeps what threads have freed, each thread's in an arena of its own, and gives back only what lies at an arena's
end. A request that is refused is freed by Python's garbage collector alone, for vLLM's error holds it in a circle; that
takes 2 to 20 ms here, as vLLM has frozen what was there at the start. Serving/README has what all of it comes to.
"""

import asyncio
import os
import time
from pathlib import Path

from qwen_vqa.plugin.command.host_memory import release_free_memory

GROWN_BYTES = 128 * 2**20
SECONDS = 0.25
# What was in use when the heap was trimmed is looked at once more.
SETTLED_SECONDS = 3.0


def resident_bytes() -> int:
    """Memory that this process holds (Linux; 0 where there is no /proc)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


async def keep_heap_small() -> None:
    """Release what is free whenever the process has grown by `GROWN_BYTES`, and once after that; until cancelled."""
    least, again = resident_bytes(), float("inf")
    while True:
        await asyncio.sleep(SECONDS)
        now = resident_bytes()
        least = min(least, now)
        grown = now - least > GROWN_BYTES
        if grown or time.monotonic() > again:
            await asyncio.to_thread(release_free_memory)
            least = resident_bytes()
            again = time.monotonic() + SETTLED_SECONDS if grown else float("inf")
