"""How fast the machine reads memory: the best of several ways to read a lot of it.

python -m qwen_vqa.benchmarks.machine.read_bandwidth

One way alone is a measure of that way. torch's sum stayed between 31 and 54 GB/s from run to run on one machine,
where a good matrix-vector product read 54: so several kernels run in turns, over memory that was taken anew in each
turn (where its pages lie matters), on one thread and on all, and the best of all counts. numpy asks for huge pages,
torch for small ones; both are tried. A limit is what is possible: what reads less is slower for a reason of its own,
or was disturbed.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch

from qwen_vqa.benchmarks.script import run

# Far above any cache: 1 GiB in rows of 64 KiB.
READ_BYTES = 2**30
ROW_BYTES = 2**16
TURNS = 4
SECONDS = 0.5


def read_bandwidth(turns: int = TURNS, seconds: float = SECONDS, size: int = READ_BYTES) -> dict[str, Any]:
    """Bytes a second: `best`, and by way the best and the worst of its turns."""
    threads = torch.get_num_threads()
    found: dict[str, list[float]] = {}
    try:
        for _ in range(turns):
            for used in sorted({1, threads}):
                torch.set_num_threads(used)
                for name, run in ways(size, used):
                    found.setdefault(f"{name}, {used} threads", []).append(best_rate(size, run, seconds))
    finally:
        torch.set_num_threads(threads)
    return {
        "best": max(max(rates) for rates in found.values()),
        "ways": {name: {"best": max(rates), "worst": min(rates)} for name, rates in found.items()},
    }


def ways(size: int, threads: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Ways to read `size` bytes once; each has memory of its own, which goes when the next one comes."""
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        width = ROW_BYTES // dtype.itemsize
        vector = torch.ones(width, dtype=dtype)
        yield f"matrix-vector product, {name}", partial(torch.mv, _ones(size).view(dtype).view(-1, width), vector)
        small_pages = torch.ones(size // ROW_BYTES, width, dtype=dtype)
        yield f"matrix-vector product, {name}, small pages", partial(torch.mv, small_pages, vector)
    yield "sum, float32", _ones(size).sum
    yield "largest, float32", _ones(size).amax
    yield "sum, int64", _ones(size).view(torch.int64).sum
    # Each thread goes through a part of its own in blocks, without a barrier in between.
    parts = np.array_split(np.ones(size // 4, dtype=np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        yield "dot product by blocks, float32", lambda: list(pool.map(_dot, parts))


def _ones(size: int) -> torch.Tensor:
    """float32 in memory that numpy asked for."""
    return torch.from_numpy(np.ones(size // 4, dtype=np.float32))


def _dot(part: np.ndarray) -> float:
    with_itself = (float(np.dot(block, block)) for block in np.array_split(part, max(1, part.nbytes // 2**24)))
    return sum(with_itself)


def best_rate(work: float, run: Callable[[], Any], seconds: float) -> float:
    """The highest of the rates (work per second) of repeated runs: what others take away is not the machine's."""
    run()
    end = time.monotonic() + seconds
    best = 0.0
    while time.monotonic() < end:
        started = time.perf_counter()
        run()
        best = max(best, work / (time.perf_counter() - started))
    return best


def main() -> int:
    """Print each way's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=TURNS, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a way in a turn (default: %(default)s)")
    args = parser.parse_args()
    found = read_bandwidth(args.turns, args.seconds)
    for name, rates in found["ways"].items():
        print(f"{name:>48}: {rates['best'] / 1e9:5.1f} GB/s, worst turn {rates['worst'] / 1e9:5.1f}")
    print(f"{'best':>48}: {found['best'] / 1e9:5.1f} GB/s")
    return 0


if __name__ == "__main__":
    run("read_bandwidth", main)
