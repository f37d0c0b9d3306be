"""Two replicas behind HAProxy, killed and restarted under load: what is lost, and what is answered wrongly.

python benchmarks/replicas/failover.py serving/demo_checkpoint --minutes 15

Users ask the same questions again and again through OpenAI's SDK, with its default retries, half of them as streams;
what the model should say was asked before anything was killed. In turns an engine, a server or a whole replica is
killed (SIGKILL). In between each replica is restarted once (SIGTERM, which lets it finish), and HAProxy once. A replica
that ends is started again, as systemd does. Flags behind `--` go to `qwen-vqa serve`. Status 1 where an answer was
lost, wrong, or cut without an error, or where something is left behind.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load_report.load_table import align
from qwen_vqa.benchmarks.replicas.replica import (
    Footprint,
    Replica,
    kept,
    left_behind,
    shared_memory_left,
    wait_until_ready,
)
from qwen_vqa.benchmarks.replicas.router import Router
from qwen_vqa.benchmarks.replicas.users import Tally, expected_answers, questions, use
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.command.sigterm import ended_by_sigterm
from qwen_vqa.plugin.errors import UserError

KILLED = ("engine", "server", "everything")
MODEL = "under-test"
CALM_SECONDS = 5.0  # before the first failure


@dataclass
class Failures:
    """What happened, and when: seconds from the first question, and until all replicas were ready again."""

    replicas: list[Replica]
    router: Router
    ended: threading.Event
    every: float
    rounds: int
    happened: list[tuple[float, str, float]] = field(default_factory=list)
    error: BaseException | None = None

    def go_on(self) -> None:
        """Let things fail, one after another, until it is over. To be run in a thread of its own."""
        started = time.monotonic()
        try:
            for number, (name, act) in zip(count(1), self._acts(), strict=False):
                if self.ended.wait(max(0.0, CALM_SECONDS + self.every * (number - 1) - (time.monotonic() - started))):
                    return
                at = time.monotonic() - started
                act()
                needed = wait_until_ready(self.replicas, self.ended)
                self.happened.append((at, name, needed))
                print(f"{at:6.0f} s  {name}; all ready again after {needed:.1f} s", file=sys.stderr, flush=True)
        except (UserError, OSError, subprocess.SubprocessError) as error:
            self.error = error
            self.ended.set()

    def _acts(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Kills in turns; after a third of them the rolling restart, after another the router's."""
        for number in count():
            if number == self.rounds // 3:
                for replica in self.replicas:
                    yield f"{replica.name} restarted (SIGTERM)", replica.drain
            if number == 2 * self.rounds // 3:
                yield "HAProxy restarted", self.router.restart
            replica, what = self.replicas[number % len(self.replicas)], KILLED[number % len(KILLED)]
            yield f"{replica.name}: {what} killed", partial(replica.kill, what)


def measure(args: argparse.Namespace, folder: Path) -> dict:
    """Everything: start, ask calmly, fail, stop, look for what is left.

    Raises:
        UserError: a replica or the router does not start, or does not come back.
    """
    mark = uuid.uuid4().hex
    arguments = [args.checkpoint, "--served-model-name", MODEL, *args.serve]
    replicas = [Replica(name, arguments, folder / f"{name}.log", mark) for name in ("first", "second")]
    router = Router(folder, [replica.port for replica in replicas])
    asked, tally, ended = questions(args.questions), Tally(), threading.Event()
    with kept(replicas):
        wait_until_ready(replicas)
        router.start()
        try:
            expected = asyncio.run(expected_answers(router.url, MODEL, asked))
            footprint = Footprint.of(replicas)
            failures = Failures(replicas, router, ended, args.kill_every, int(60 * args.minutes / args.kill_every))
            failing = threading.Thread(target=failures.go_on)
            failing.start()
            started = time.monotonic()

            def goes_on() -> bool:
                enough = (
                    time.monotonic() - started >= 60 * args.minutes
                    and tally.answered >= args.requests
                    and len(failures.happened) >= args.failures
                )
                return not (enough or ended.is_set())

            try:
                asyncio.run(use(router.url, MODEL, args.users, asked, expected, tally, goes_on))
            finally:
                ended.set()
                failing.join()
            if failures.error is not None:
                raise failures.error
            seconds = time.monotonic() - started
            wait_until_ready(replicas)
            after = Footprint.of(replicas)
        finally:
            router.stop()
    return {
        "seconds": seconds,
        "users": args.users,
        "tally": asdict(tally),
        "happened": failures.happened,
        "starts": {replica.name: replica.starts for replica in replicas},
        "footprint": {"before": asdict(footprint), "after": asdict(after)},
        "left": {"processes": left_behind(mark), "/dev/shm": shared_memory_left(replicas)},
        "good": tally.good,
    }


def table(result: dict) -> str:
    """What a reader wants to know."""
    tally, left = result["tally"], result["left"]
    seconds = sorted(tally["seconds"])
    rows = [
        ("answered as expected", f"{tally['answered']:,}"),
        ("lost", f"{tally['lost']:,}"),
        ("answered wrongly", f"{tally['wrong']:,}"),
        ("streams cut without an error", f"{tally['cut']:,}"),
        ("streams broken with an error, asked again by the user", f"{tally['broken']:,}"),
        ("sent again by the SDK", f"{tally['retries']:,}"),
    ]
    if len(seconds) > 1:
        p99 = statistics.quantiles(seconds, n=100)[98]
        rows.append(("seconds to the whole answer: p50, p99, most", f"{seconds[len(seconds) // 2]:.2f}, {p99:.2f}, "))
        rows[-1] = (rows[-1][0], f"{rows[-1][1]}{seconds[-1]:.2f}")
    kinds: dict[str, list[float]] = {}
    for _, name, needed in result["happened"]:
        kinds.setdefault(name.rpartition(": ")[2] if "killed" in name else name, []).append(needed)
    for kind, needed in kinds.items():
        rows.append((f"{kind}: times, seconds until all were ready", f"{len(needed)}, {statistics.median(needed):.1f}"))
    for name, unit in (("memory_mib", "memory, MiB"), ("files", "open files"), ("processes", "processes")):
        change = " -> ".join(f"{result['footprint'][when][name]:,}" for when in ("before", "after"))
        rows.append((f"replicas' {unit}", change))
    rows += [(f"left behind: {what}", f"{len(found):,}") for what, found in left.items()]
    lines = align([("", f"{result['seconds']:.0f} s, {result['users']} users"), *rows])
    return "\n".join([*lines, *(f"{kind}: {example}" for kind, example in tally["examples"].items())])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", help="as for `qwen-vqa serve`")
    add("--minutes", type=float, default=15, help="at least (default: %(default)s)")
    add("--requests", type=int, default=0, help="answered at least (default: %(default)s)")
    add("--failures", type=int, default=1, help="at least (default: %(default)s)")
    add("--users", type=int, default=32, help="at once (default: %(default)s)")
    add("--kill-every", type=float, default=30, metavar="SECONDS", help="or when all are ready (default: %(default)s)")
    add("--questions", type=int, default=70, help="different ones (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write everything there (default: not written)")
    words = sys.argv[1:] if argv is None else argv
    own = words[: words.index("--")] if "--" in words else words
    args = parser.parse_args(own)
    args.serve = words[len(own) + 1 :]
    for name in ("minutes", "users", "kill_every", "questions"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be more than 0")
    return args


def main() -> int:
    """Measure, print, write."""
    args = parse()
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="failover-") as folder:
        result = measure(args, Path(folder))
    print(table(result))
    if args.json:
        result["tally"].pop("seconds")
        args.json.write_text(json.dumps({"environment": environment(sys.argv), **result}, indent=1) + "\n")
    return 0 if result["good"] and not any(result["left"].values()) else 1


if __name__ == "__main__":
    run("failover", main)
