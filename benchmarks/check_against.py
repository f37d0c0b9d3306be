"""Is the load generator right? The same workload by it and by vLLM's own benchmark, in turns, against one server.

python benchmarks/check_against.py --url http://localhost:8000/v1 --tokenizer my-model --rounds 3

Each run has pictures of its own, so that none finds the other's in a cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.benchmarks.workload import WorkloadSpec, conversations
from qwen_vqa.plugin.errors import UserError

# Further apart than this, a difference has to be explained.
BOUND = 0.05
FIGURES = ("requests_per_second", "output_tokens_per_second", "ttft_p50_ms", "ttft_mean_ms", "tpot_mean_ms")


@dataclass(frozen=True)
class Setting:
    """What both tools are told."""

    url: str
    model: str
    tokenizer: str
    users: int
    requests: int
    output_tokens: int


def ours(setting: Setting, seed: int, folder: Path) -> dict[str, float]:
    """A closed loop of the load generator."""
    file = folder / f"ours-{seed}.json"
    command = [sys.executable, "-m", "qwen_vqa.benchmarks.load", "--url", setting.url, "--model", setting.model]
    command += ["--concurrency", str(setting.users), "--requests", str(setting.requests), "--seed", str(seed)]
    _run([*command, "--output-tokens", str(setting.output_tokens), "--warm-up", "0", "--json", str(file)])
    summary = read_result(file)["cells"][0]["summary"]
    return {
        "requests_per_second": summary["requests_per_second"],
        "output_tokens_per_second": summary["output_tokens_per_second"],
        "ttft_p50_ms": summary["ttft"]["p50"],
        "ttft_mean_ms": summary["ttft"]["mean"],
        "tpot_mean_ms": summary["tpot"]["mean"],
    }


def vllms(setting: Setting, seed: int, folder: Path) -> dict[str, float]:
    """The same by vLLM's benchmark, from a file with our questions and pictures of this seed."""
    data, file = folder / f"questions-{seed}.jsonl", f"vllm-{seed}.json"
    spec = WorkloadSpec(((setting.model, 1.0),))
    turns = [talk.turns[0].message()["content"] for talk in conversations(spec, seed, setting.requests)]
    data.write_text("".join(json.dumps({"content": content}) + "\n" for content in turns))
    command = [sys.executable, "-m", "qwen_vqa.benchmarks.vllm_bench", "--backend", "openai-chat"]
    command += ["--base-url", setting.url.removesuffix("/v1"), "--endpoint", "/v1/chat/completions"]
    command += ["--model", setting.model, "--tokenizer", setting.tokenizer, "--dataset-name", "custom_image"]
    command += ["--dataset-path", str(data), "--custom-output-len", str(setting.output_tokens), "--ignore-eos"]
    command += ["--num-prompts", str(setting.requests), "--max-concurrency", str(setting.users), "--temperature", "0"]
    command += ["--disable-tqdm", "--save-result", "--result-dir", str(folder), "--result-filename", file]
    _run(command)
    result = json.loads((folder / file).read_text())
    if result["completed"] != setting.requests:
        raise UserError(f"only {result['completed']} of vLLM's {setting.requests} requests were answered.")
    return {
        "requests_per_second": result["request_throughput"],
        "output_tokens_per_second": result["output_throughput"],
        "ttft_p50_ms": result["median_ttft_ms"],
        "ttft_mean_ms": result["mean_ttft_ms"],
        "tpot_mean_ms": result["mean_tpot_ms"],
    }


def _run(command: list[str]) -> None:
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise UserError(
            f"{' '.join(command[:3])} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-1500:]}"
        )


def main() -> int:
    """Alternate, print the medians and their ratio; status 1 where one is further apart than the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:8000/v1", help="(default: %(default)s)")
    parser.add_argument("--model", default="qwen-vqa-demo", help="(default: %(default)s)")
    parser.add_argument("--tokenizer", default="serving/demo_checkpoint", help="for vLLM's (default: %(default)s)")
    parser.add_argument("--users", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100, help="in each run (default: %(default)s)")
    parser.add_argument("--output-tokens", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the first run (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write everything there (default: not written)")
    args = parser.parse_args()
    setting = Setting(args.url, args.model, args.tokenizer, args.users, args.requests, args.output_tokens)
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "vllm": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            tools = (("ours", ours), ("vllm", vllms))
            # Who comes first changes, so that what drifts meets both.
            for place, (name, run) in enumerate(tools if number % 2 == 0 else tools[::-1]):
                print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
                runs[name].append(run(setting, args.seed + 2 * number + place, Path(folder)))
    apart = False
    for figure in FIGURES:
        left, right = (statistics.median(run[figure] for run in runs[name]) for name in ("ours", "vllm"))
        ratio = left / right if right else float("nan")
        apart |= not abs(ratio - 1) <= BOUND
        print(f"{figure:>26}: ours {left:10.3f}  vLLM {right:10.3f}  ratio {ratio:.3f}")
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(sys.argv), "runs": runs}) + "\n")
    return int(apart)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"check_against: {error}", file=sys.stderr)
        sys.exit(2)
