"""What the machine could do at best: read bandwidth and matmul rates, and what a shape makes of them.

python benchmarks/limits.py --shapes demo,0.5b,3b --json limits.json
python benchmarks/limits.py --shapes 0.5b --result out.json    # and a load result as a share of the limit
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.benchmarks.read_bandwidth import best_rate, read_bandwidth
from qwen_vqa.benchmarks.work import WORK, Work
from qwen_vqa.plugin.errors import UserError

SECONDS = 1.0
MATRICES = (1024, 2048, 4096)
# (name, bytes of a weight)
SCHEMES = {"float32": 4, "bfloat16": 2, "int8": 1}


def matmul_rates() -> dict[str, float]:
    """Operations a second of a square product (2 n^3), per scheme, the best of some sizes. int8 is torch's own,
    summed in int32. bfloat16 is the faster of multiplying in it and of multiplying in float32, which any server may
    do with the same weights: where the processor has no bfloat16, the first is emulated.
    """
    rates = dict.fromkeys(SCHEMES, 0.0)
    for size in MATRICES:
        for name in ("float32", "bfloat16"):
            left, right = (torch.randn(size, size, dtype=getattr(torch, name)) for _ in range(2))
            rates[name] = max(rates[name], best_rate(2 * size**3, partial(torch.matmul, left, right), SECONDS))
        small, other = (torch.randint(-127, 127, (size, size), dtype=torch.int8) for _ in range(2))
        rates["int8"] = max(rates["int8"], best_rate(2 * size**3, partial(torch._int_mm, small, other), SECONDS))
    rates["bfloat16"] = max(rates["bfloat16"], rates["float32"])
    return rates


def limits(work: Work, bandwidth: float, rates: dict[str, float], output_tokens: int) -> list[dict[str, Any]]:
    """Per scheme: what one user's decode and what any server's requests cannot pass.

    Decode of one user reads every weight of the language model once a token: bandwidth / bytes.
    Requests are bounded by arithmetic: matmul rate / (encoder + prefill + decode).
    """
    rows = []
    for scheme, size in SCHEMES.items():
        per_request = work.request(output_tokens)
        rows.append(
            {
                "scheme": scheme,
                "decode_tokens_per_second": bandwidth / (work.language_parameters * size),
                "prefill_tokens_per_second": rates[scheme] / (2 * work.body_parameters),
                "requests_per_second": rates[scheme] / per_request,
            }
        )
    return rows


def main() -> int:
    """Measure, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="demo,0.5b,3b", help="(default: %(default)s)")
    parser.add_argument("--output-tokens", type=int, default=32, help="of a request (default: %(default)s)")
    parser.add_argument("--scheme", choices=sorted(SCHEMES), default="bfloat16", help="of --result (default: bfloat16)")
    parser.add_argument("--result", type=Path, help="of load.py, on the one shape that is named (default: none)")
    parser.add_argument("--json", type=Path, help="write everything there (default: not written)")
    args = parser.parse_args()
    names = args.shapes.split(",")
    if unknown := [name for name in names if name not in WORK]:
        raise UserError(f"--shapes: there is no {', '.join(unknown)}; there are {', '.join(WORK)}.")
    if args.result and len(names) != 1:
        raise UserError("--result needs the one shape that it was measured on: --shapes 0.5b.")
    reading, rates = read_bandwidth(), matmul_rates()
    bandwidth = reading["best"]
    found = {name: limits(WORK[name], bandwidth, rates, args.output_tokens) for name in names}
    print(f"{torch.get_num_threads()} threads: read {bandwidth / 1e9:.1f} GB/s; matmul, GFLOP/s or GOP/s: ", end="")
    print(", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items()))
    for name, rows in found.items():
        for row in rows:
            print(
                f"{name:>5} {row['scheme']:>9}: decode of one user {row['decode_tokens_per_second']:,.1f} tokens/s, "
                f"prefill {row['prefill_tokens_per_second']:,.0f} tokens/s, "
                f"{row['requests_per_second']:,.2f} requests/s of {args.output_tokens} tokens"
            )
    if args.result:
        _print_shares(read_result(args.result), found[names[0]], args.scheme)
    if args.json:
        result = {"environment": environment(sys.argv), "bandwidth": reading, "matmul": rates, "limits": found}
        args.json.write_text(json.dumps(result) + "\n")
    return 0


def _print_shares(result: dict[str, Any], rows: list[dict[str, Any]], scheme: str) -> None:
    limit = next(row for row in rows if row["scheme"] == scheme)
    for cell in result["cells"]:
        summary = cell["summary"]
        text = f"{summary['requests_per_second'] / limit['requests_per_second']:.0%} of the limit in requests"
        if cell["arrivals"]["concurrency"] == 1 and summary["tpot"]:
            decode = 1000 / summary["tpot"]["p50"]
            text += f", decode {decode:.1f} tokens/s, {decode / limit['decode_tokens_per_second']:.0%}"
        print(f"{cell['label']}, {cell['cache']}: {text}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"limits: {error}", file=sys.stderr)
        sys.exit(2)
