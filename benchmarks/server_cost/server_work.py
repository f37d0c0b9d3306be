"""What a request costs the server beside the model: CPU time of every process but the engine's, for each request.

python benchmarks/server_cost/server_work.py --users 32 --requests 200

`qwen-vqa serve` and stock `vllm serve` with the plugin stand in turns before the same checkpoint and are asked by the
load generator, with a KV cache of one GiB each. With --instant no model computes (instant_executor.py): what the API
process can do at most, whatever GPU stands behind it. CPU time is what the system counted for the processes between the
first request and the last answer.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.benchmarks.load_report.load_table import align
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.command.installed_command import installed_command
from qwen_vqa.plugin.command.sigterm import ended_by_sigterm
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.verify.local_server import free_port, wait_until_ready

STOCK = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
ENGINE = ("EngineCore", "Worker")  # vLLM's titles of the processes that compute
INSTANT = "qwen_vqa.benchmarks.server_cost.instant_executor.InstantExecutor"
MAX_MODEL_LEN = 1024
# Else stock vLLM touches nearly all of the machine's memory, and both servers' files are read from disk again.
KV_GIB = "1"


@contextlib.contextmanager
def server(command: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """Start it, wait for it, give its address with /v1 and its process; it is stopped at the end.

    Raises:
        UserError: it did not start.
    """
    port = free_port()
    quiet = {"VLLM_CPU_KVCACHE_SPACE": KV_GIB, **os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    address = f"http://127.0.0.1:{port}"
    with ended_by_sigterm():
        process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, env=quiet)
        try:
            wait_until_ready(process, address, path="/v1/models")
            yield f"{address}/v1", psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def cpu_seconds(root: psutil.Process) -> tuple[float, float]:
    """CPU time until now of the tree's processes: all but the engine's, and the engine's."""
    beside = engine = 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            title = " ".join(process.cmdline())
            if any(name in title for name in ENGINE):
                engine += times.user + times.system
            else:
                beside += times.user + times.system
    return beside, engine


def measure(command: list[str], args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Milliseconds of CPU for each request, and requests/s."""
    with server(command) as (url, process), tempfile.TemporaryDirectory() as folder:
        _load(url, args, seed + 1000, Path(folder) / "warm.json", min(args.requests, args.users))
        before = cpu_seconds(process)
        summary = _load(url, args, seed, Path(folder) / "load.json", args.requests)
        after = cpu_seconds(process)
    if summary["failed"]:
        raise UserError(f"{summary['failed']} of {args.requests} requests failed.")
    beside, engine = (1000 * (end - start) / args.requests for start, end in zip(before, after, strict=True))
    return {
        "beside the engine, ms": beside,
        "engine, ms": engine,
        "requests/s": summary["requests_per_second"],
        "at most, requests/s": 1000 / beside,
        "TTFT p50, ms": summary["ttft"]["p50"],
    }


def _load(url: str, args: argparse.Namespace, seed: int, file: Path, requests: int) -> dict:
    command = [sys.executable, "-m", "qwen_vqa.benchmarks.load", "--url", url, "--json", str(file), "--warm-up", "0"]
    command += ["--concurrency", str(args.users), "--requests", str(requests), "--seed", str(seed)]
    command += ["--output-tokens", str(args.output_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise UserError(f"the load generator ended with {done.returncode}:\n{done.stderr[-1500:]}")
    return read_result(file)["cells"][0]["summary"]


def main() -> int:
    """Measure in turns, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", default="serving/demo_checkpoint", help="(default: %(default)s)")
    add("--users", type=int, default=32, help="at once (default: %(default)s)")
    add("--requests", type=int, default=200, help="in each round (default: %(default)s)")
    add("--output-tokens", type=int, default=32, help="(default: %(default)s)")
    add("--instant", action="store_true", help="an engine that answers at once in place of the model's")
    add("--rounds", type=int, default=2, help="starts of each server (default: %(default)s)")
    add("--seed", type=int, default=1, help="of the first round (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write everything there (default: not written)")
    args = parser.parse_args()
    commands = {
        "vllm serve": [*STOCK, args.checkpoint, "--max-model-len", str(MAX_MODEL_LEN)],
        "qwen-vqa serve": installed_command("serve", args.checkpoint, "--max-model-len", str(MAX_MODEL_LEN)),
    }
    if args.instant:
        instant = ["--distributed-executor-backend", INSTANT]
        commands = {f"{name}, instant engine": [*command, *instant] for name, command in commands.items()}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for number in range(args.rounds):
        for name, command in commands.items():
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            runs[name].append(measure(command, args, args.seed + number))
    figures = list(next(iter(runs.values()))[0])
    rows = [("medians", *figures)]
    for name, found in runs.items():
        rows.append((name, *(f"{statistics.median(run[figure] for run in found):.1f}" for figure in figures)))
    print("\n".join(align(rows)))
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(sys.argv), "runs": runs}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run("server_work", main)
