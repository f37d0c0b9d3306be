"""How long `qwen-vqa serve` takes to answer: the engine's process a copy of the API's, a new one, or two of them.

python benchmarks/server_cost/startup_time.py --runs 3

The variants take turns, so that what else the machine does falls on both. Seconds from the command's start:
port: something answers (503 while the model loads); ready: GET /ready is 200; answer: the first question's.
Beside it, whether the variant costs speed once it runs: tokens a second of 64 answers of 64 tokens, 8 at once.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.command.installed_command import installed_command
from qwen_vqa.plugin.command.sigterm import ended_by_sigterm
from qwen_vqa.serving import DEMO_NAME
from qwen_vqa.train.verify.local_server import free_port

# Arguments and environment of each.
VARIANTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "engine a copy of the API's process": ([], {}),
    "engine in a new process": ([], {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}),
    "and its worker in another": (["--distributed-executor-backend", "mp"], {}),
}
STAGES = ("port", "ready", "answer", "tokens/s")
ANSWERS, TOKENS, AT_ONCE = 64, 64, 8
MOST_SECONDS = 300


def measure(arguments: list[str], surroundings: dict[str, str]) -> dict[str, float]:
    """Start the demo once, ask it, stop it; the seconds to each stage, and tokens a second."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    started = time.perf_counter()
    output = subprocess.DEVNULL
    command = installed_command("serve", *arguments, "--port", str(port))
    with ended_by_sigterm():
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **surroundings})
        try:
            seconds = {
                stage: _seconds_until(f"{address}{path}", started, process, status)
                for stage, path, status in (
                    ("port", "/health", None),
                    ("ready", "/ready", 200),
                )
            }
            _ask(address, 4)
            seconds["answer"] = time.perf_counter() - started
            return {**seconds, "tokens/s": _tokens_a_second(address)}
        finally:
            process.terminate()
            process.wait(60)


def _ask(address: str, tokens: int) -> None:
    messages = [{"role": "user", "content": "hello"}]
    question = {"model": DEMO_NAME, "messages": messages, "max_tokens": tokens, "ignore_eos": True}
    httpx.post(f"{address}/v1/chat/completions", json=question, timeout=MOST_SECONDS).raise_for_status()


def _tokens_a_second(address: str) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda _: _ask(address, TOKENS), range(ANSWERS)))
    return ANSWERS * TOKENS / (time.perf_counter() - started)


def _seconds_until(url: str, started: float, process: subprocess.Popen, status: int | None) -> float:
    """Until it answers with this status, or at all."""
    while time.perf_counter() - started < MOST_SECONDS:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url).status_code == status or status is None:
                return time.perf_counter() - started
        time.sleep(0.02)
    raise RuntimeError(f"no {url} within {MOST_SECONDS} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="starts of each variant (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every start there, too")
    args = parser.parse_args()
    starts: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for number in range(1, args.runs + 1):
        for name, variant in VARIANTS.items():
            starts[name].append(measure(*variant))
            told = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in starts[name][-1].items())
            print(f"run {number} of {args.runs}, {name}: {told}; load {os.getloadavg()[0]:.1f}", flush=True)
    print(f"\n{'median of ' + str(args.runs):<36s}" + "".join(f"{stage:>9s}" for stage in STAGES))
    for name, runs in starts.items():
        medians = [statistics.median(run[stage] for run in runs) for stage in STAGES]
        print(f"{name:<36s}" + "".join(f"{median:9.1f}" for median in medians))
    if args.json:
        found = {"environment": environment(sys.argv), "starts": starts}
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run("startup", main)
