"""What the machine could do at best: read bandwidth and matmul rates, and what a shape makes of them.

python benchmarks/machine/machine_limits.py --shapes demo,0.5b,3b --json limits.json
python benchmarks/machine/machine_limits.py --shapes 0.5b --result out.json  # and a load result as a share of it
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load import read_result
from qwen_vqa.benchmarks.machine.flop_counts import WORK, Work
from qwen_vqa.benchmarks.machine.part_formats import SCHEMES, PartFormat
from qwen_vqa.benchmarks.machine.read_bandwidth import best_rate, read_bandwidth
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.errors import UserError

SECONDS = 1.0
MATRICES = (1024, 2048, 4096)
TYPES = ("float32", "bfloat16", "int8")
# So many times slower than float32, a product is made number by number: no size is faster, and large ones take minutes.
EMULATED = 10


def matmul_rates() -> dict[str, float]:
    """Operations a second of a square product (2 n^3), per type, the best of some sizes. int8 is torch's own,
    summed in int32. bfloat16 and int8 are the faster of multiplying in them and of multiplying in float32, which any
    server may do with the same weights: where the processor has no instructions for them, the first is emulated.
    """
    rates = dict.fromkeys(TYPES, 0.0)
    for size in MATRICES:
        for name in TYPES:
            if size > MATRICES[0] and rates[name] < rates["float32"] / EMULATED:
                continue
            product = partial(_product(name), *_matrices(name, size))
            rates[name] = max(rates[name], best_rate(2 * size**3, product, SECONDS))
    return {name: max(rate, rates["float32"]) for name, rate in rates.items()}


def _product(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return torch._int_mm if name == "int8" else torch.matmul


def _matrices(name: str, size: int) -> list[torch.Tensor]:
    if name == "int8":
        return [torch.randint(-127, 127, (size, size), dtype=torch.int8) for _ in range(2)]
    return [torch.randn(size, size, dtype=getattr(torch, name)) for _ in range(2)]


def limits(work: Work, bandwidth: float, rates: dict[str, float], output_tokens: int) -> list[dict[str, Any]]:
    """Per scheme: what one user's decode and prefill and what any server's requests cannot pass.

    Decode of one user reads every weight of layers and output layer once a token: bandwidth / bytes.
    Prefill and requests are bounded by arithmetic, each part at the rate of its own type: `prefill_tokens_per_second`
    are the tokens of a prompt with its image / the seconds until its first token; a request decodes, too.
    """
    rows = []
    for name, scheme in SCHEMES.items():
        read = work.body_parameters * scheme.layer_bytes + work.output_parameters * scheme.around_bytes
        tokens = work.prompt_tokens
        rows.append(
            {
                "scheme": name,
                "decode_tokens_per_second": bandwidth / read,
                "prefill_tokens_per_second": tokens / arithmetic_seconds(work, scheme, rates, tokens),
                "requests_per_second": 1 / arithmetic_seconds(work, scheme, rates, tokens, output_tokens),
            }
        )
    return rows


def arithmetic_seconds(
    work: Work,
    scheme: PartFormat,
    rates: dict[str, float],
    prompt_tokens: float,
    output_tokens: int = 1,
    image: bool = True,
) -> float:
    """What the arithmetic of a request takes at the least, one part after the other; `rates` are of `matmul_rates`."""
    layers = work.layer_operations(prompt_tokens, output_tokens) / rates[scheme.layer_type]
    return layers + work.around_operations(output_tokens, image) / rates[scheme.around_type]


def decode_share(summary: dict[str, Any], limit: dict[str, Any]) -> float | None:
    """Of a cell with one user: tokens a second (of the median TPOT) / the limit. None where nothing was decoded."""
    return 1000 / summary["tpot"]["p50"] / limit["decode_tokens_per_second"] if summary["tpot"] else None


def prefill_share(
    summary: dict[str, Any], work: Work, scheme: PartFormat, rates: dict[str, float], image: bool = True
) -> float | None:
    """Of a cell with one user and new images: what encoder and prompt take at the matmul rates / the median TTFT.

    The prompt's tokens are the server's own count without those that it had cached; None where it counts none.
    """
    if not summary["ttft"] or not summary["prompt_tokens"]:
        return None
    tokens = summary["prompt_tokens"] / summary["completed"] * (1 - (summary["cached_token_share"] or 0))
    return arithmetic_seconds(work, scheme, rates, tokens, image=image) / (summary["ttft"]["p50"] / 1000)


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
                f"{name:>5} {row['scheme']:>8}: decode of one user {row['decode_tokens_per_second']:,.1f} tokens/s, "
                f"prefill {row['prefill_tokens_per_second']:,.0f} tokens/s, "
                f"{row['requests_per_second']:,.2f} requests/s of {args.output_tokens} tokens"
            )
    if args.result:
        print("\n".join(share_lines(read_result(args.result), names[0], args.scheme, found[names[0]], rates)))
    if args.json:
        result = {"environment": environment(sys.argv), "bandwidth": reading, "matmul": rates, "limits": found}
        args.json.write_text(json.dumps(result) + "\n")
    return 0


def share_lines(
    result: dict[str, Any], shape: str, scheme: str, rows: list[dict[str, Any]], rates: dict[str, float]
) -> list[str]:
    """Of each cell of a load result whose requests have one image each: requests, and decode and prefill of one user
    whose pictures are new."""
    limit = next(row for row in rows if row["scheme"] == scheme)
    lines = []
    for cell in result["cells"]:
        summary = cell["summary"]
        parts = [f"{summary['requests_per_second'] / limit['requests_per_second']:.0%} of the limit in requests"]
        if cell["arrivals"]["concurrency"] == 1 and summary["later_turns"] is None:
            decode = decode_share(summary, limit)
            cold = cell["cache"] == "cold"
            prefill = prefill_share(summary, WORK[shape], SCHEMES[scheme], rates) if cold else None
            parts += [f"{share:.0%} in {what}" for what, share in (("decode", decode), ("prefill", prefill)) if share]
        lines.append(f"{cell['label']}, {cell['cache']}: {', '.join(parts)}")
    return lines


if __name__ == "__main__":
    run("limits", main)
