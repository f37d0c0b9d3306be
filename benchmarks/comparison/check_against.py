"""Is the load generator right? The same workload by it, by vLLM's own benchmark and by guidellm, in turns, against one
server.

python benchmarks/comparison/check_against.py --url http://localhost:8000/v1 --tokenizer my-model --rounds 3

Each run has pictures of its own, so that none finds the other's in a cache.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from qwen_vqa.benchmarks.alternatives.environments import FOLDER
from qwen_vqa.benchmarks.comparison.load_tools import TOOLS, LoadSetting, tool_versions
from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load_report.load_table import align
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.errors import UserError

# Further apart than this, a difference has to be explained.
BOUND = 0.05
FIGURES = ("requests_per_second", "output_tokens_per_second", "ttft_p50_ms", "ttft_mean_ms", "tpot_mean_ms")


def measured(setting: LoadSetting, names: tuple[str, ...], rounds: int, seed: int) -> dict[str, list[dict[str, float]]]:
    """Each tool's runs. Who comes first changes from round to round, so that what drifts meets all."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            first = number % len(names)
            for place, name in enumerate(names[first:] + names[:first]):
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                runs[name].append(TOOLS[name](setting, seed + len(names) * number + place, Path(folder)))
    return runs


def medians(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Each tool's, by figure."""
    return {
        name: {figure: statistics.median(run[figure] for run in every) for figure in FIGURES}
        for name, every in runs.items()
    }


def ratios(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Our median as a multiple of each other tool's, by figure; None where that is zero."""
    return {
        name: {figure: found["ours"][figure] / value if value else None for figure, value in theirs.items()}
        for name, theirs in found.items()
        if name != "ours"
    }


def compared(runs: dict[str, list[dict[str, float]]]) -> tuple[list[tuple[str, ...]], bool]:
    """A table of the medians, with ours as a multiple of each other's, and whether one is further than the bound."""
    middle = medians(runs)
    against = ratios(middle)
    rows: list[tuple[str, ...]] = [("median", "ours", *(text for name in against for text in (name, "ratio")))]
    for figure in FIGURES:
        row = [figure, f"{middle['ours'][figure]:.3f}"]
        for name, found in against.items():
            ratio = found[figure]
            row += [f"{middle[name][figure]:.3f}", "-" if ratio is None else f"{ratio:.3f}"]
        rows.append(tuple(row))
    return rows, any(
        ratio is None or not abs(ratio - 1) <= BOUND for found in against.values() for ratio in found.values()
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
    parser.add_argument("--tools", default="vllm,guidellm", help="to compare with (default: %(default)s)")
    parser.add_argument("--environments", type=Path, default=FOLDER, help="of guidellm (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write everything there (default: not written)")
    args = parser.parse_args()
    names = ("ours", *args.tools.split(","))
    if unknown := [name for name in names if name not in TOOLS]:
        raise UserError(f"--tools: there is no {', '.join(unknown)}; there are {', '.join(TOOLS)}.")
    setting = LoadSetting(
        args.url, args.model, args.tokenizer, args.users, args.requests, args.output_tokens, args.environments
    )
    runs = measured(setting, names, args.rounds, args.seed)
    rows, apart = compared(runs)
    print("\n".join(align(rows)))
    if args.json:
        middle = medians(runs)
        result = {
            "environment": environment(sys.argv),
            "tools": tool_versions(names, args.environments),
            "setting": {
                **asdict(setting),
                "environments": str(args.environments),
                "rounds": args.rounds,
                "seed": args.seed,
            },
            "bound": BOUND,
            "medians": middle,
            "ratios": ratios(middle),
            "runs": runs,
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(apart)


if __name__ == "__main__":
    run("check_against", main)
