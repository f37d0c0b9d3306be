"""What it is worth that a caller stays at one of two replicas: hits of the image cache, and the time of an answer.

python benchmarks/replicas/affinity.py serving/demo_checkpoint --questions 5

Users ask several questions about a picture, one after another, then about the next picture, first through the file of
serving/deploy, which keeps a caller at a replica, then through the same file with `balance roundrobin`. A cache that
has the picture is hit. Where any of N replicas may be asked, question k finds its picture with a chance of
1 - (1 - 1/N)^(k - 1); where a caller stays, from the second question on.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load_generator.sample_images import SampleImage
from qwen_vqa.benchmarks.load_generator.server_metrics import read_metrics
from qwen_vqa.benchmarks.load_report.load_table import align
from qwen_vqa.benchmarks.replicas.replica import Replica, kept, wait_until_ready
from qwen_vqa.benchmarks.replicas.router import Router
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.command.sigterm import ended_by_sigterm
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.message_parts import user_message

MODEL = "under-test"
SIZE = (640, 480)
STAYS, ANY = "a caller stays", "round robin"
ROUND_ROBIN = (
    ("balance hash var(txn.caller)", "balance roundrobin"),
    ("hash-type consistent ", "# hash-type consistent "),
)
SHOWN = (2, 4, 8)  # replicas, in the table of what to expect


def expected_hits(questions: int, replicas: int, stays: bool) -> float:
    """Share of questions whose picture the replica has, of so many about each picture."""
    if stays:
        return (questions - 1) / questions
    return sum(1 - (1 - 1 / replicas) ** earlier for earlier in range(questions)) / questions


async def ask(url: str, users: int, pictures: int, questions: int, first_seed: int) -> list[float]:
    """Seconds of each answer but those to a picture's first question."""

    async def user(number: int) -> list[float]:
        seconds = []
        async with AsyncOpenAI(base_url=url, api_key=f"user-{number}") as client:
            for picture in range(pictures):
                address = SampleImage(first_seed + number * pictures + picture, *SIZE).url()
                for question in range(questions):
                    message: Any = user_message(f"Question {question}: what is in the picture?", [address])
                    started = time.monotonic()
                    await client.chat.completions.create(model=MODEL, messages=[message], max_tokens=4)
                    if question:
                        seconds.append(time.monotonic() - started)
        return seconds

    return [one for answers in await asyncio.gather(*map(user, range(users))) for one in answers]


def measure(args: argparse.Namespace, changes: Sequence[tuple[str, str]], seed: int) -> dict[str, float]:
    """Of two new replicas behind HAProxy.

    Raises:
        UserError: one does not start, or says nothing of its cache.
    """
    with tempfile.TemporaryDirectory(prefix="affinity-") as name:
        folder = Path(name)
        arguments = [args.checkpoint, "--served-model-name", MODEL]
        mark = uuid.uuid4().hex
        replicas = [Replica(name, arguments, folder / f"{name}.log", mark) for name in ("first", "second")]
        router = Router(folder, [replica.port for replica in replicas], changes)
        with kept(replicas):
            wait_until_ready(replicas)
            router.start()
            try:
                seconds = asyncio.run(ask(router.url, args.users, args.pictures, args.questions, seed))
            finally:
                router.stop()
            found = [read_metrics(f"http://127.0.0.1:{replica.port}/v1", {}) for replica in replicas]
    counted = [one for one in found if one is not None]
    queries = sum(one["mm_cache_queries"] for one in counted)
    if len(counted) < len(replicas) or not queries:
        raise UserError("the replicas say nothing of their image cache at /metrics.")
    hits = sum(one["mm_cache_hits"] for one in counted)
    return {"hits": hits / queries, "queries": queries, "seconds": statistics.median(seconds)}


def table(measured: dict[str, dict[str, float]], questions: int) -> str:
    """Measured and expected hits, and what more replicas would have."""
    rows: list[tuple[str, ...]] = [("two replicas", "hits", "expected", "seconds to a later answer, p50")]
    for name, one in measured.items():
        expected = expected_hits(questions, 2, name == STAYS)
        rows.append((name, f"{one['hits']:.1%}", f"{expected:.1%}", f"{one['seconds']:.3f}"))
    more: list[tuple[str, ...]] = [("replicas (by the formula)", *map(str, SHOWN))]
    for name in (STAYS, ANY):
        more.append((name, *(f"{expected_hits(questions, number, name == STAYS):.1%}" for number in SHOWN)))
    return "\n".join([*align(rows), "", *align(more)])


def main() -> int:
    """Measure both ways, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", help="as for `qwen-vqa serve`")
    add("--users", type=int, default=8, help="at once (default: %(default)s)")
    add("--pictures", type=int, default=10, help="of each user (default: %(default)s)")
    add("--questions", type=int, default=5, help="about each picture (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the pictures (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write everything there (default: not written)")
    args = parser.parse_args()
    for name in ("users", "pictures", "questions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be 1 or more")
    with ended_by_sigterm():
        measured = {name: measure(args, changes, args.seed) for name, changes in ((STAYS, ()), (ANY, ROUND_ROBIN))}
    print(table(measured, args.questions))
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(sys.argv), **measured}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run("affinity", main)
