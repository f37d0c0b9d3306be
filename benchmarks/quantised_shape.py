"""Speed, memory and disk of the schemes at full size: Qwen2.5's shape, random weights, bfloat16, against 16 bits.

Outside the suite: it takes minutes a scheme; 3B needs 12 GB of disk and about 20 GB of memory. Int4 is rounded to
nearest here: calibrating random weights would change neither size nor speed.

    python benchmarks/quantised_shape.py --shape 3b -o runs/3b                  # on a machine with nothing else to do
    python benchmarks/quantised_shape.py --shape 0.5b --schemes int8 -o runs/half-b
"""

import argparse
import sys
from pathlib import Path

from qwen_vqa.benchmarks.shapes import SHAPES, shape_checkpoint
from qwen_vqa.quantize.checkpoint import write_quantised
from qwen_vqa.quantize.options import Options, check
from qwen_vqa.serving.cli import main as qwen_vqa


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="3b", help="(default: %(default)s)")
    parser.add_argument("--schemes", nargs="+", default=["int8", "int4", "nf4"], help="(default: int8 int4 nf4)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    parser.add_argument(
        "--threads-bind", action="append", metavar="BIND", help="passed on to the report (default: 0 and 0-1)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="of each timed answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each server (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="for checkpoints and reports")
    args = parser.parse_args()
    original = shape_checkpoint(args.shape, args.output / "original", args.seed)
    binds = [word for bind in args.threads_bind or ["0", "0-1"] for word in ("--threads-bind", bind)]
    for name in args.schemes:
        quantised = args.output / name
        if not quantised.exists():
            options = Options(original, quantised, name)
            scheme, selection = check(options)
            write_quantised(
                original, quantised, scheme, selection, lambda _, w, s=scheme: s.quantise(w), options.record()
            )
        timing = ["--tokens", str(args.tokens), "--rounds", str(args.rounds)]
        qwen_vqa(["quantize", "report", str(original), str(quantised), *timing, *binds])
    return 0


if __name__ == "__main__":
    sys.exit(main())
