"""Everything that this server is compared with, started and measured one after another in one run.

python benchmarks/suite.py --shapes demo,0.5b --out benchmarks/results/

Per shape: this server, (a) transformers one at a time, (b) transformers in static batches, (d) stock vLLM's LLaVA of
the same dimensions. Each is asked by the load generator with the same questions and pictures, after a fresh start.
The first are asked again at the end: what drifted in between is the machine's.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen_vqa.benchmarks.alternatives.llava import llava_checkpoint
from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.benchmarks.load_table import align
from qwen_vqa.benchmarks.shapes import SHAPES, shape_checkpoint
from qwen_vqa.plugin.errors import UserError

START_SECONDS = 900
TRANSFORMERS = "qwen_vqa.benchmarks.alternatives.transformers_server"


@dataclass(frozen=True)
class Candidate:
    """A server: what tables call it, and the command that starts it (the port is put at its end)."""

    name: str
    command: tuple[str, ...]


def candidates(shape: str, folder: Path, dtype: str, batch: int) -> list[Candidate]:
    """The servers of a shape; makes the checkpoints that are not there."""
    ours = str(shape_checkpoint(shape, folder / shape))
    llava = str(llava_checkpoint(shape, folder / f"llava-{shape}"))
    python = (sys.executable, "-m")
    stock = ("vllm.entrypoints.openai.api_server", "--model", llava, "--max-model-len", "2048", "--dtype", dtype)
    return [
        Candidate("qwen-vqa", (*python, "qwen_vqa.serving.cli", "serve", ours, "--dtype", dtype)),
        Candidate("a: transformers", (*python, TRANSFORMERS, ours, "--dtype", dtype)),
        Candidate(
            f"b: transformers, batch {batch}", (*python, TRANSFORMERS, ours, "--dtype", dtype, "--batch", str(batch))
        ),
        Candidate("d: vLLM's LLaVA", (*python, *stock)),
    ]


@contextlib.contextmanager
def running(candidate: Candidate, log: Path) -> Iterator[str]:
    """Start it, wait until it lists its models, and give its address with /v1.

    Raises:
        UserError: it ended or was not ready in time; its log is named.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*candidate.command, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}/v1"
            _wait(process, url, candidate, log)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: subprocess.Popen, url: str, candidate: Candidate, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"{candidate.name} ended with {process.returncode}; see {log}.")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/models", timeout=5):
            return
        time.sleep(1)
    raise UserError(f"{candidate.name} was not ready after {START_SECONDS} s; see {log}.")


def measure(candidate: Candidate, name: str, args: argparse.Namespace) -> dict:
    """One candidate's load result, from a file that stays."""
    base = args.out / name
    with running(candidate, base.with_suffix(".log")) as url:
        command = [sys.executable, "-m", "qwen_vqa.benchmarks.load", "--url", url, "--concurrency", args.concurrency]
        command += ["--requests", str(args.requests), "--output-tokens", str(args.output_tokens)]
        command += ["--seed", str(args.seed), "--json", f"{base}.json", "--html", f"{base}.html"]
        if subprocess.run(command, check=False).returncode not in (0, 1):
            raise UserError(f"{candidate.name} could not be measured; see {base.with_suffix('.log')}.")
    return read_result(Path(f"{base}.json"))


def table(results: dict[str, dict]) -> str:
    """A row per candidate and cell, with its throughput as a multiple of (a)'s and of the first candidate's."""
    rows: list[tuple[str, ...]] = [("server", "cell", "requests/s", "against (a)", "TTFT p95 ms", "failed")]
    reference = next((result for name, result in results.items() if name.startswith("a:")), None)
    base = {cell["label"]: cell["summary"]["requests_per_second"] for cell in reference["cells"]} if reference else {}
    for name, result in results.items():
        for cell in result["cells"]:
            summary = cell["summary"]
            against = summary["requests_per_second"] / base[cell["label"]] if base.get(cell["label"]) else None
            rows.append(
                (
                    name,
                    cell["label"],
                    f"{summary['requests_per_second']:.3f}",
                    f"{against:.2f}" if against else "-",
                    f"{summary['ttft']['p95']:.0f}" if summary["ttft"] else "-",
                    str(summary["failed"]),
                )
            )
    return "\n".join(align(rows))


def main() -> int:
    """Measure every shape; what fails is said at once and the rest goes on, with status 1 at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="demo,0.5b", help="of demo, 0.5b, 3b (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="(default: %(default)s)")
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/shapes"), help="(default: %(default)s)")
    parser.add_argument("--concurrency", default="1,8,32", help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100, help="in each cell (default: %(default)s)")
    parser.add_argument("--output-tokens", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="of (b) (default: %(default)s)")
    parser.add_argument("--only", default="", help="candidates that start so, with commas (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    args = parser.parse_args()
    shapes = args.shapes.split(",")
    if unknown := [shape for shape in shapes if shape not in ("demo", *SHAPES)]:
        raise UserError(f"--shapes: there is no {', '.join(unknown)}; there are demo, {', '.join(SHAPES)}.")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for shape in shapes:
        every = candidates(shape, args.checkpoints, args.dtype, args.batch)
        every = [one for one in every if one.name.startswith(tuple(args.only.split(",")))]
        results: dict[str, dict] = {}
        for number, candidate in enumerate([*every, *every[:1]]):
            again = number == len(every)
            print(f"suite: {shape}: {candidate.name}{', again' if again else ''}", file=sys.stderr, flush=True)
            title = f"{candidate.name}, again" if again else candidate.name
            try:
                results[title] = measure(candidate, f"{shape}-{number}", args)
            except UserError as error:
                failed += 1
                print(f"suite: {error}", file=sys.stderr, flush=True)
        print(f"{shape}, {args.dtype}, {args.output_tokens} output tokens\n{table(results)}")
        cells = {
            name: [cell["summary"] | {"label": cell["label"]} for cell in r["cells"]] for name, r in results.items()
        }
        summary = {"environment": environment(sys.argv), "shape": shape, "dtype": args.dtype, "results": cells}
        (args.out / f"{shape}.json").write_text(json.dumps(summary, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"suite: {error}", file=sys.stderr)
        sys.exit(2)
