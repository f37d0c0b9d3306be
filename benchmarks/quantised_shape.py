"""Speed and memory of the schemes at full size, against 16 bits: Qwen2.5's shape, random weights.

Each part is a set of servers that stand at once and are asked in turns: SCHEME or SCHEME:DTYPE with commas between,
where DTYPE is of what is not quantised. Its result is OUT/PART.json; a part whose file is there is not measured again,
so that an interrupted run goes on where it was. `demo` is this server with the bundled model, almost without weights:
what the others have more in memory once they are ready is their weights.

    python benchmarks/quantised_shape.py --shape 3b -o runs/3b                 # on a machine with nothing else to do
    python benchmarks/quantised_shape.py --shape 0.5b --parts 16-bit,int8 16-bit:float32,int8:float32 -o runs/half-b

Outside the suite: 3B takes minutes a part, 12 GB of disk and about 20 GB of memory. Int4 is rounded to nearest here:
calibrating random weights would change neither size nor speed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load_table import align
from qwen_vqa.plugin.errors import UserError

if TYPE_CHECKING:
    from qwen_vqa.quantize.speed import Side

# torch and vLLM are imported in functions: the load generator's processes import this file again.

GIB = 2**30
SHAPES = ("0.5b", "3b")
ORIGINAL, BASELINE = "16-bit", "demo"
PARTS = (BASELINE, "16-bit,int8", "16-bit:float32", "int8:float32", "16-bit,int4", "16-bit,nf4")


def main() -> int:
    """Measure the parts that are not there yet, and print the table of all.

    Raises:
        UserError: a part names no scheme, or cannot be measured here.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="3b", help="(default: %(default)s)")
    add("--parts", nargs="+", default=PARTS, metavar="PART", help=f"(default: {' '.join(PARTS)})")
    add("--seed", type=int, default=0, help="of weights and questions (default: %(default)s)")
    add("--tokens", type=int, default=24, help="of each timed answer (default: %(default)s)")
    add("--rounds", type=int, default=2, help="turns of each server (default: %(default)s)")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="for checkpoints and results")
    args = parser.parse_args()
    from qwen_vqa.quantize.speed import Load, measure

    args.output.mkdir(parents=True, exist_ok=True)
    load = Load(tokens=args.tokens, rounds=args.rounds, seed=args.seed)
    for part in args.parts:
        file = args.output / f"{part.replace(',', '+').replace(':', '-')}.json"
        if file.exists():
            continue
        words = part.split(",")
        sides = [side(word, args.shape, args.output, args.seed) for word in words]
        found = [one.summary() for one in measure(sides, load)]
        result = {"environment": environment(sys.argv), "shape": args.shape, "tokens": load.tokens, "seed": load.seed}
        file.write_text(json.dumps(result | {"sides": dict(zip(words, found, strict=True))}, indent=1) + "\n")
    print(table([json.loads(file.read_text()) for file in sorted(args.output.glob("*.json"))]))
    return 0


def side(word: str, shape: str, folder: Path, seed: int) -> "Side":
    """SCHEME or SCHEME:DTYPE as a checkpoint, which is made if it is not there.

    Raises:
        UserError: there is no such scheme, or it cannot be made or served here.
    """
    from qwen_vqa.benchmarks.shapes import shape_checkpoint
    from qwen_vqa.quantize.checkpoint import write_quantised
    from qwen_vqa.quantize.options import Options, check
    from qwen_vqa.quantize.speed import Side

    scheme_name, _, dtype = word.partition(":")
    if scheme_name == BASELINE:
        return Side(shape_checkpoint("demo", folder), dtype or "bfloat16")
    original = shape_checkpoint(shape, folder / ORIGINAL, seed)
    quantised = folder / scheme_name
    if scheme_name != ORIGINAL and not quantised.exists():
        options = Options(original, quantised, scheme_name)
        scheme, selection = check(options)
        write_quantised(original, quantised, scheme, selection, lambda _, w: scheme.quantise(w), options.record())
    return Side(quantised, dtype or "bfloat16")


def table(results: list[dict[str, Any]]) -> str:
    """A row for each server; ratios to the 16-bit server of the same part, or else to the mean of those of others."""
    baseline = next((r["sides"][BASELINE]["ready_bytes"] for r in results if BASELINE in r["sides"]), 0)
    originals = [r["sides"][ORIGINAL] for r in results if ORIGINAL in r["sides"]]
    rows: list[tuple[str, ...]] = []
    for result in results:
        for name, one in result["sides"].items():
            if name != BASELINE:
                rows.append(_row(name, one, result["sides"].get(ORIGINAL), originals, baseline))
    phases = [f"{phase}, {users}" for phase in ("decode", "prefill") for users in ("1 user", "16 users")]
    return "\n".join(align([("server", *phases, "weights GiB", "load s"), *rows]))


def _row(name: str, one: dict, beside: dict | None, originals: list[dict], baseline: int) -> tuple[str, ...]:
    cells = []
    for phase in ("decode", "prefill"):
        for users, speed in one[f"{phase}_tokens_per_second"].items():
            of = [o[f"{phase}_tokens_per_second"][users] for o in ([beside] if beside else originals)]
            ratio = f" ({speed * len(of) / sum(of):.2f}x)" if of and one is not beside else ""
            cells.append(f"{speed:.2f}{ratio}")
    weights = one["ready_bytes"] - baseline
    of = [o["ready_bytes"] - baseline for o in ([beside] if beside else originals)]
    share = f" ({100 * weights * len(of) / sum(of):.0f}%)" if of and one is not beside else ""
    return (name, *cells, f"{weights / GIB:.2f}{share}", f"{one['load_seconds']:.0f}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"quantised_shape: {error}", file=sys.stderr)
        sys.exit(2)
