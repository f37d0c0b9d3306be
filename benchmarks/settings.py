"""One checkpoint behind `qwen-vqa serve` with several settings, one after another in one run, the first one again at
the end: what the settings are worth on this machine.

python benchmarks/settings.py runs/shapes/0.5b --setting "serve's choice:" \\
    --setting "vLLM's threads: VLLM_CPU_OMP_THREADS_BIND=auto" --setting "float32: --dtype float32"

A setting is a name, a colon, and words: NAME=VALUE goes into the server's environment, anything else is a flag of it.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.benchmarks.load_table import align
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.server_process import started_server

VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*=")


@dataclass(frozen=True)
class Setting:
    """What a server is started with, under a name."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Setting":
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


def measure(model: str, setting: Setting, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Start the server, ask it, stop it: seconds until it was ready, and the cells' summaries.

    Raises:
        UserError: it did not start, or could not be measured.
    """
    flags = [model, *setting.flags, "--served-model-name", "measured"]
    surroundings = {**os.environ, **setting.variables}
    output = None if args.verbose else subprocess.DEVNULL
    started = time.monotonic()
    with started_server(flags, stdout=output, environment=surroundings) as (address, _):
        ready = time.monotonic() - started
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "load.json"
            command = [sys.executable, "-m", "qwen_vqa.benchmarks.load", "--url", f"{address}/v1", "--json", str(file)]
            command += ["--concurrency", args.concurrency, "--requests", str(args.requests), "--seed", str(seed)]
            command += ["--output-tokens", str(args.output_tokens)]
            if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode not in (0, 1):
                raise UserError(f"{setting.name} could not be measured; the reason is above.")
            cells = read_result(file)["cells"]
    return {"ready_seconds": ready, "cells": [{"label": cell["label"], **cell["summary"]} for cell in cells]}


def table(results: list[tuple[str, dict[str, Any]]]) -> str:
    """A row per setting and cell, with its throughput as a multiple of the first setting's."""
    rows: list[tuple[str, ...]] = [
        ("setting", "ready s", "cell", "requests/s", "against first", "TTFT p50 ms", "p95", "TPOT p50 ms", "failed")
    ]
    first = {cell["label"]: cell["requests_per_second"] for cell in results[0][1]["cells"]}
    for name, result in results:
        for cell in result["cells"]:
            ttft, tpot = cell["ttft"] or {}, cell["tpot"] or {}
            rows.append(
                (
                    name,
                    f"{result['ready_seconds']:.1f}",
                    cell["label"],
                    f"{cell['requests_per_second']:.3f}",
                    f"{cell['requests_per_second'] / first[cell['label']]:.2f}" if first.get(cell["label"]) else "-",
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
    add("--seed", type=int, default=1, help="of the first setting's requests (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write everything there (default: not written)")
    add("--verbose", action="store_true", help="show what the servers say")
    args = parser.parse_args()
    settings = [Setting.parse(text) for text in args.setting or ["serve's choice:"]]
    results: list[tuple[str, dict[str, Any]]] = []
    for number, setting in enumerate([*settings, *(settings[:1] if len(settings) > 1 else [])]):
        name = f"{setting.name}, again" if number == len(settings) else setting.name
        print(f"settings: {number + 1}: {name}", file=sys.stderr, flush=True)
        results.append((name, measure(args.model, setting, args, args.seed)))
        print(table(results), flush=True)
        if args.json:
            found = {"environment": environment(sys.argv), "settings": dict(results)}
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"settings: {error}", file=sys.stderr)
        sys.exit(2)
