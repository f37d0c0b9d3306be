"""One checkpoint behind `qwen-vqa serve` with several settings: what the settings are worth on this machine.

They are measured one after another in one run, the first one again at the end; or, with --turns, their servers stand at
the same time and are asked in turns, so that what else the machine does falls on all of them.

python benchmarks/comparison/settings.py runs/shapes/0.5b --setting "serve's choice:" \\
    --setting "vLLM's threads: VLLM_CPU_OMP_THREADS_BIND=auto" --setting "float32: --dtype float32"
python benchmarks/comparison/settings.py runs/shapes/0.5b-int8 --turns 6 --requests 4 --concurrency 1 \\
    --setting "mixed:" --setting "packed: --output-layer packed"

A setting is a name, a colon, and words: NAME=VALUE goes into the server's environment, anything else is a flag of it.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.benchmarks.load_report.load_table import align
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.verify.local_server import started_server

# Each of a turn's cells takes one, or one more for each of its processes: the next turn's pictures are new to a server.
SEEDS_OF_A_TURN = 100_000
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*=")


@dataclass(frozen=True)
class ServeSetting:
    """What a server is started with, under a name."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "ServeSetting":
        """From "name: VARIABLE=value --flag value".

        Raises:
            UserError: there is no colon.
        """
        name, colon, words = text.partition(":")
        if not colon:
            raise UserError(
                f"--setting {text!r}: there is no colon; give a name first, as in 'float32: --dtype float32'."
            )
        split = shlex.split(words)
        variables = dict(word.split("=", 1) for word in split if VARIABLE.match(word))
        return cls(name.strip(), variables, tuple(word for word in split if not VARIABLE.match(word)))


def measure(setting: ServeSetting, args: argparse.Namespace) -> dict[str, Any]:
    """Start the server, ask it, stop it: seconds until it was ready, and the cells' summaries.

    Raises:
        UserError: it did not start, or could not be measured.
    """
    with _server(setting, args) as (address, seconds):
        return {"ready_seconds": seconds, "cells": _ask(setting, address, args, args.seed)}


def measure_in_turns(
    settings: list[ServeSetting], args: argparse.Namespace
) -> Generator[list[dict[str, Any]], None, None]:
    """The same of each setting, with all servers standing at once, after each turn: cells have the means over the turns
    so far, with the median of what each turn had as a multiple of the first setting's; and the turns themselves.

    Raises:
        UserError: a server did not start, or could not be measured.
    """
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_server(setting, args)) for setting in settings]
        for turns in ask_in_turns(settings, [address for address, _ in servers], args):
            yield [
                {"ready_seconds": seconds, "cells": means(own, turns[0]), "turns": own}
                for (_, seconds), own in zip(servers, turns, strict=True)
            ]


def ask_in_turns(
    settings: list[ServeSetting], addresses: list[str], args: argparse.Namespace
) -> Iterator[list[list[list[dict[str, Any]]]]]:
    """After each turn: each setting's turns so far, each a list of cells.

    Raises:
        UserError: a server could not be measured.
    """
    turns: list[list[list[dict[str, Any]]]] = [[] for _ in settings]
    for turn in range(args.turns):
        order = range(len(settings))
        for index in order if turn % 2 == 0 else reversed(order):  # what grows or falls steadily cancels out
            print(f"settings: turn {turn + 1} of {args.turns}: {settings[index].name}", file=sys.stderr, flush=True)
            warm_up = None if turn == 0 else 0
            seed = args.seed + turn * SEEDS_OF_A_TURN
            turns[index].append(_ask(settings[index], addresses[index], args, seed, warm_up))
        yield turns


@contextlib.contextmanager
def _server(setting: ServeSetting, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Its address, and after how many seconds it was ready."""
    flags = [args.model, *setting.flags, "--served-model-name", "measured"]
    output = None if args.verbose else subprocess.DEVNULL
    started = time.monotonic()
    with started_server(flags, stdout=output, environment={**os.environ, **setting.variables}) as (address, _):
        yield address, time.monotonic() - started


def _ask(
    setting: ServeSetting, address: str, args: argparse.Namespace, seed: int, warm_up: int | None = None
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "load.json"
        command = [sys.executable, "-m", "qwen_vqa.benchmarks.load", "--url", f"{address}/v1", "--json", str(file)]
        command += ["--concurrency", args.concurrency, "--requests", str(args.requests), "--seed", str(seed)]
        command += ["--output-tokens", str(args.output_tokens)]
        command += [] if warm_up is None else ["--warm-up", str(warm_up)]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode not in (0, 1):
            raise UserError(f"{setting.name} could not be measured; the reason is above.")
        cells = read_result(file)["cells"]
        return [{"label": cell["label"], "seed": cell["seed"], **cell["summary"]} for cell in cells]


def means(turns: list[list[dict[str, Any]]], first: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Cells over the turns of a setting, beside those of the first one."""
    cells = []
    for number, cell in enumerate(turns[0]):
        own, beside = ([turn[number] for turn in each] for each in (turns, first))
        mean: dict[str, Any] = {"label": cell["label"], "failed": sum(one["failed"] for one in own)}
        rates = [one["requests_per_second"] for one in own]
        mean["requests_per_second"] = statistics.mean(rates)
        ratios = [
            rate / base["requests_per_second"]
            for rate, base in zip(rates, beside, strict=True)
            if base["requests_per_second"]
        ]
        mean["against_first"] = statistics.median(ratios) if ratios else None
        for name in ("ttft", "tpot"):
            answered = [one[name] for one in own if one[name]]
            mean[name] = {at: statistics.mean(one[at] for one in answered) for at in ("p50", "p95") if answered}
        cells.append(mean)
    return cells


def table(results: list[tuple[str, dict[str, Any]]]) -> str:
    """A row per setting and cell, with its throughput as a multiple of the first setting's."""
    rows: list[tuple[str, ...]] = [
        ("setting", "ready s", "cell", "requests/s", "against first", "TTFT p50 ms", "p95", "TPOT p50 ms", "failed")
    ]
    first = {cell["label"]: cell["requests_per_second"] for cell in results[0][1]["cells"]}
    for name, result in results:
        for cell in result["cells"]:
            ttft, tpot = cell["ttft"] or {}, cell["tpot"] or {}
            alone = cell["requests_per_second"] / first[cell["label"]] if first.get(cell["label"]) else None
            against = cell.get("against_first", alone)
            rows.append(
                (
                    name,
                    f"{result['ready_seconds']:.1f}",
                    cell["label"],
                    f"{cell['requests_per_second']:.3f}",
                    f"{against:.2f}" if against else "-",
                    *(f"{ttft[at]:.0f}" if ttft else "-" for at in ("p50", "p95")),
                    f"{tpot['p50']:.1f}" if tpot else "-",
                    str(cell["failed"]),
                )
            )
    return "\n".join(align(rows))


def main() -> int:
    """Measure each setting in turn, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", default="serving/demo_checkpoint", help="checkpoint folder (default: %(default)s)")
    add("--setting", action="append", default=[], metavar="NAME: WORDS", help="may be repeated (default: serve's own)")
    add("--concurrency", default="1,8", help="users at once (default: %(default)s)")
    add("--requests", type=int, default=16, help="in each cell (default: %(default)s)")
    add("--output-tokens", type=int, default=32, help="(default: %(default)s)")
    add(
        "--turns",
        type=int,
        default=0,
        help="servers stand at once and are asked so often in turns (default: they do not)",
    )
    add("--seed", type=int, default=1, help="of the requests; each turn has the next one (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write everything there (default: not written)")
    add("--verbose", action="store_true", help="show what the servers say")
    args = parser.parse_args()
    if args.turns < 0:
        raise UserError(f"--turns {args.turns}: it must be 0 (one server after another) or more.")
    settings = [ServeSetting.parse(text) for text in args.setting or ["serve's choice:"]]
    results: list[tuple[str, dict[str, Any]]] = []
    if args.turns:
        try:
            with contextlib.closing(measure_in_turns(settings, args)) as turns:  # its servers end here
                for found in turns:
                    results = list(zip((setting.name for setting in settings), found, strict=True))
                    _write(results, args)
        finally:  # also of the turns before it was stopped
            if results:
                print(table(results), flush=True)
        return 0
    for number, setting in enumerate([*settings, *(settings[:1] if len(settings) > 1 else [])]):
        name = f"{setting.name}, again" if number == len(settings) else setting.name
        print(f"settings: {number + 1}: {name}", file=sys.stderr, flush=True)
        results.append((name, measure(setting, args)))
        print(table(results), flush=True)
        _write(results, args)
    return 0


def _write(results: list[tuple[str, dict[str, Any]]], args: argparse.Namespace) -> None:
    if args.json:
        found = {"environment": environment(sys.argv), "settings": dict(results)}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run("settings", main)
