"""Speed and memory of the schemes at full size, against 16 bits: Qwen2.5's shape, random weights.

Each part is a set of servers that stand at once and are asked in turns: SCHEME or SCHEME:DTYPE with commas between,
where DTYPE is of what is not quantised (by default what serve chooses). Its result is OUT/PART.json; a part whose file
is there is not measured again, so that an interrupted run goes on where it was. `demo` is this server with the bundled
model, almost without weights: what the others have more in memory once they are ready is their weights, shown as a
share of 16-bit:bfloat16's.

    python benchmarks/quantisation/quantised_shape.py --shape 3b -o runs/3b   # on a machine with nothing else to do
    python benchmarks/quantisation/quantised_shape.py --shape 0.5b --parts 16-bit,int8 --users 1 -o runs/half-b
    # memory alone:
    python benchmarks/quantisation/quantised_shape.py --parts demo 16-bit:bfloat16 int4 nf4 --rounds 0 --eager -o runs

Outside the suite: 3B takes minutes a part, 12 GB of disk, and memory for the part's servers; where both do not fit,
give each a part of its own (`--parts 16-bit int8`), and they are measured one after the other. Int4 is rounded to
nearest here: calibrating random weights would change neither size nor speed.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load_report.load_table import align
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.command.command_parser import seed_number
from qwen_vqa.plugin.command.library_warnings import quiet_libraries

if TYPE_CHECKING:
    from qwen_vqa.benchmarks.quantisation.speed import Side

# torch and vLLM are imported in functions: the load generator's processes import this file again.

GIB = 2**30
SHAPES = ("0.5b", "3b")
ORIGINAL, BASELINE = "16-bit", "demo"
IN_16_BITS = f"{ORIGINAL}:bfloat16"
PARTS = (BASELINE, "16-bit,int8", "16-bit,int4", "16-bit,nf4", IN_16_BITS)


def main() -> int:
    """Measure the parts that are not there yet, and print the table of all.

    Raises:
        UserError: a part names no scheme, or cannot be measured here.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="3b", help="(default: %(default)s)")
    add("--parts", nargs="+", default=PARTS, metavar="PART", help=f"(default: {' '.join(PARTS)})")
    add("--seed", type=seed_number, default=0, help="of weights and questions (default: %(default)s)")
    add("--tokens", type=int, default=24, help="of each timed answer (default: %(default)s)")
    add("--users", type=int, nargs="+", default=[1, 16], help="at once (default: 1 16)")
    add("--rounds", type=int, default=2, help="turns of each server; 0: only load them (default: %(default)s)")
    add("--eager", action="store_true", help="servers do not compile, and load sooner; results go to OUT/eager")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="for checkpoints and results")
    args = parser.parse_args()
    quiet_libraries()
    from qwen_vqa.benchmarks.quantisation.speed import Load, measure

    results = args.output / "eager" if args.eager else args.output
    results.mkdir(parents=True, exist_ok=True)
    load = Load(tuple(args.users), args.tokens, rounds=args.rounds, seed=args.seed)
    for part in args.parts:
        file = results / f"{part.replace(',', '+').replace(':', '-')}.json"
        if file.exists():
            continue
        words = part.split(",")
        sides = [side(word, args.shape, args.output, args.seed, args.eager) for word in words]
        found = [one.summary() for one in measure(sides, load)]
        result = {"environment": environment(sys.argv), "shape": args.shape, "load": asdict(load)}
        file.write_text(json.dumps(result | {"sides": dict(zip(words, found, strict=True))}, indent=1) + "\n")
    print(table([json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]))
    return 0


def side(word: str, shape: str, folder: Path, seed: int, eager: bool = False) -> "Side":
    """SCHEME or SCHEME:DTYPE as a checkpoint, which is made if it is not there.

    Raises:
        UserError: there is no such scheme, or it cannot be made or served here.
    """
    from qwen_vqa.benchmarks.machine.model_shapes import shape_checkpoint
    from qwen_vqa.benchmarks.quantisation.speed import Side
    from qwen_vqa.quantize.options import Options, check
    from qwen_vqa.quantize.quantised_checkpoint import write_quantised

    flags = ("--enforce-eager",) if eager else ()
    scheme_name, _, dtype = word.partition(":")
    if scheme_name == BASELINE:
        return Side(shape_checkpoint("demo", folder), dtype or "auto", flags)
    original = shape_checkpoint(shape, folder / ORIGINAL, seed)
    quantised = folder / scheme_name
    if scheme_name != ORIGINAL and not quantised.exists():
        options = Options(original, quantised, scheme_name)
        scheme, selection = check(options)
        write_quantised(original, quantised, scheme, selection, lambda _, w: scheme.quantise(w), options.record(scheme))
    return Side(quantised, dtype or "auto", flags)


def table(results: list[dict[str, Any]]) -> str:
    """A row for each server; speeds as multiples of the 16-bit checkpoint's in the same part, or else in another."""
    alone = next((result["sides"][ORIGINAL] for result in results if ORIGINAL in result["sides"]), None)
    every = [entry for result in results for entry in result["sides"].items()]
    ready = {name: one["ready_bytes"] for name, one in every}
    baseline, whole = ready.get(BASELINE, 0), ready.get(IN_16_BITS)
    held = "weights GiB" if baseline else "memory GiB"
    columns = [(phase, users) for phase in ("decode", "prefill") for users in ("1", "16")]
    rows = [("server", *(f"{phase}, {users} users" for phase, users in columns), held, "load s")]
    for result in results:
        for name, one in result["sides"].items():
            beside = result["sides"].get(ORIGINAL, alone) if name != ORIGINAL else None
            speeds = [_speed(one, beside, f"{phase}_tokens_per_second", users) for phase, users in columns]
            weights = one["ready_bytes"] - baseline
            share = f" ({weights / (whole - baseline):.0%})" if whole and baseline else ""
            rows.append((name, *speeds, f"{weights / GIB:.2f}{share}", f"{one['load_seconds']:.0f}"))
    return "\n".join(align(rows))


def _speed(one: dict, beside: dict | None, phase: str, users: str) -> str:
    speed = one[phase].get(users)
    if speed is None:
        return "-"
    return f"{speed:.2f} ({speed / beside[phase][users]:.2f}x)" if beside else f"{speed:.2f}"


if __name__ == "__main__":
    run("quantised_shape", main)
