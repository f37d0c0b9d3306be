"""A few answers' product with the output layer on a CPU: oneDNN's packed float32, and the input embeddings' 16 bits.

python benchmarks/machine/output_layer_speed.py --shapes 0.5b,3b --json out.json

Both take turns of one product each, so that what else the machine does falls on both; random numbers of Qwen2.5's
dimensions. `ratio` is the median over the turns of the packed one's time / the 16 bits' time. Of the plugin, it is
embedding.py and small_batch_matmul.py that have them.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load_report.load_table import align
from qwen_vqa.benchmarks.machine.flop_counts import WORK
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.command.library_warnings import quiet_libraries
from qwen_vqa.plugin.cpu.output_layout import FEW
from qwen_vqa.plugin.errors import UserError


def main() -> int:
    """Measure, print, write.

    Raises:
        UserError: there is no such shape.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="0.5b,3b", help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=20, help="of each product (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there (default: not written)")
    args = parser.parse_args()
    if args.turns < 1:
        raise UserError(f"--turns {args.turns}: it must be at least 1.")
    names = args.shapes.split(",")
    if unknown := [name for name in names if name not in WORK]:
        raise UserError(f"--shapes: there is no {', '.join(unknown)}; there are {', '.join(WORK)}.")
    # As `serve` sets them for its engine, before OpenMP's library is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", str(psutil.cpu_count(logical=False) or 1))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    quiet_libraries()
    found = {name: products(WORK[name].vocabulary, WORK[name].hidden, args.turns) for name in names}
    rows: list[tuple[str, ...]] = [("shape", "answers", "packed float32 ms", "16 bits ms", "ratio")]
    for name, products_of in found.items():
        for one in products_of:
            times = (f"{statistics.median(one[way]):.1f}" for way in ("packed_ms", "table_ms"))
            rows.append((name, str(one["answers"]), *times, f"{one['ratio']:.2f}"))
    print("\n".join(align(rows)))
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(sys.argv), "products": found}, indent=1) + "\n")
    return 0


def products(vocabulary: int, width: int, turns: int) -> list[dict[str, Any]]:
    """For each number of answers that `serve` gives to the 16-bit table: milliseconds of each turn."""
    import torch
    from vllm import _custom_ops as ops

    from qwen_vqa.plugin.cpu.small_batch_matmul import multiply

    torch.manual_seed(0)
    table = torch.randn(vocabulary, width).bfloat16()
    packed = ops.create_onednn_mm(table.float().t(), 32)
    found = []
    for answers in range(1, FEW + 1):
        x = torch.randn(answers, width)
        ways = partial(ops.onednn_mm, packed, x, None), partial(multiply, x, table)
        torch.testing.assert_close(ways[1](), ways[0](), rtol=1e-4, atol=1e-2)
        wide, narrow = zip(*([_ms(way) for way in ways] for _ in range(turns)), strict=True)
        ratio = statistics.median(slow / fast for slow, fast in zip(wide, narrow, strict=True))
        found.append({"answers": answers, "packed_ms": wide, "table_ms": narrow, "ratio": ratio})
    return found


def _ms(product: Callable[[], Any]) -> float:
    started = time.perf_counter()
    product()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    run("output_layer", main)
