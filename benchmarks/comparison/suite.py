"""Everything that this server is compared with, started and measured one after another in one run.

python benchmarks/comparison/suite.py --shapes demo,0.5b
python benchmarks/comparison/suite.py --shapes 0.5b --only ours,a --resume   # a part; the summary holds all there is
python benchmarks/comparison/suite.py --shapes 0.5b --summary   # measures nothing; settings are the files' own

Per shape: the machine's limits; this server, also in int8; (a) transformers one request at a time, (b) in static
batches, (c) `transformers serve`, (d) stock vLLM with its own LLaVA of the same dimensions, (e) llama.cpp on the
language model with text of the same length. Each is started afresh and asked the same questions and pictures by the
load generator. What came first comes again at the end: what drifted in between is the machine's.

Where the processor does not multiply bfloat16 itself, this server and (a) are measured in float32 as well, and the
others in the type that was the faster for their side.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from qwen_vqa.benchmarks.alternatives.environments import FOLDER
from qwen_vqa.benchmarks.comparison.candidates import Candidate, Maker, bfloat16_is_native
from qwen_vqa.benchmarks.comparison.measurement import MeasurementSetting, kept, measure
from qwen_vqa.benchmarks.comparison.suite_table import caption, table
from qwen_vqa.benchmarks.comparison.targets import MeasuredShape, target_rows
from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load_report.load_table import align
from qwen_vqa.benchmarks.machine.flop_counts import WORK
from qwen_vqa.benchmarks.machine.machine_limits import limits, matmul_rates
from qwen_vqa.benchmarks.machine.model_shapes import SHAPES
from qwen_vqa.benchmarks.machine.read_bandwidth import read_bandwidth
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.errors import UserError


def main() -> int:
    """Measure every shape; what fails is said at once and the rest goes on, with status 1 at the end."""
    args = _parser().parse_args()
    shapes = args.shapes.split(",")
    if unknown := [shape for shape in shapes if shape not in ("demo", *SHAPES)]:
        raise UserError(f"--shapes: there is no {', '.join(unknown)}; there are demo, {', '.join(SHAPES)}.")
    args.out.mkdir(parents=True, exist_ok=True)
    setting = _setting(args)
    failed = 0
    for shape in shapes:
        run = _Run(shape, args, setting)
        failed += run.measure()
        try:
            run.summarise()
        except UserError as error:  # the other shapes are still to be measured
            print(f"suite: {shape}: {error}", file=sys.stderr, flush=True)
            failed += 1
    return int(failed > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shapes", default="demo,0.5b", help="of demo, 0.5b, 3b (default: %(default)s)")
    add("--out", type=Path, default=Path("benchmarks/results"), help="for summaries (default: %(default)s)")
    add("--work", type=Path, default=Path("runs/suite"), help="for each candidate's (default: %(default)s)")
    add("--checkpoints", type=Path, default=Path("runs/shapes"), help="(default: %(default)s)")
    add("--environments", type=Path, default=FOLDER, help="of (d) and (e) (default: %(default)s)")
    add("--concurrency", default="1,8,32", help="users, one cell each (default: %(default)s)")
    add("--requests", default="8,24,64", help="in each of those cells (default: %(default)s)")
    add("--warm-up", type=int, default=4, help="requests before each cell, not counted (default: %(default)s)")
    add("--output-tokens", type=int, default=32, help="(default: %(default)s)")
    add(
        "--text-words",
        type=int,
        help="where text is asked (default: so many that the prompt is as long as with an image)",
    )
    add("--batch", type=int, default=8, help="of (b) (default: %(default)s)")
    add("--only", default="", help="keys of candidates, with commas (default: all; --list shows them)")
    add("--list", action="store_true", help="the candidates; measures nothing")
    add("--resume", action="store_true", help="keep what an earlier run of the same settings finished")
    add("--summary", action="store_true", help="of what is there; measures nothing")
    add("--seed", type=int, default=1, help="(default: %(default)s)")
    return parser


def _setting(args: argparse.Namespace) -> MeasurementSetting:
    try:
        users, requests = ([int(part) for part in text.split(",")] for text in (args.concurrency, args.requests))
    except ValueError:
        users, requests = [], [0]
    if len(users) != len(requests) or min((*users, *requests), default=0) < 1:
        raise UserError(f"--concurrency {args.concurrency} --requests {args.requests}: expected as many of each.")
    return MeasurementSetting(tuple(zip(users, requests, strict=True)), args.output_tokens, args.seed, args.warm_up, 0)


class _Run:
    """A shape's."""

    def __init__(self, shape: str, args: argparse.Namespace, setting: MeasurementSetting) -> None:
        words = args.text_words if args.text_words is not None else WORK[shape].encoder_tokens * 2 // 5
        self.setting = MeasurementSetting(**{**setting.__dict__, "words": words})
        self.shape, self.args = shape, args
        self.maker = Maker(shape, args.checkpoints, args.environments, args.output_tokens, args.batch)
        self.folder = args.work / f"{shape}-{args.output_tokens}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.limits_file = args.work / f"{shape}-limits.json"
        # A summary says what was asked, not what its own flags would ask.
        files = self._files() if args.summary else {}
        self.asked = next((one["setting"] for one in files.values()), self.setting.as_json())

    def measure(self) -> int:
        """Returns the number of candidates that failed."""
        if self.args.summary:
            return 0
        only = [key for key in self.args.only.split(",") if key]
        keys = [candidate.key for candidate in self._candidates()]
        if unknown := [key for key in only if key not in keys]:
            raise UserError(f"--only: there is no {', '.join(unknown)}; there are {', '.join(keys)}.")
        if self.args.list:
            print("\n".join(f"{one.key:>16}  {one.name}" for one in self._candidates()))
            return 0
        # Before hours are spent on what no table may hold together.
        self._check({key: one for key, one in self._files().items() if key not in (only or keys)})
        if not (self.args.resume and self.limits_file.exists()):
            self._say("the machine's limits")
            found = {"bandwidth": read_bandwidth(), "matmul": matmul_rates(), "environment": environment(sys.argv)}
            self.limits_file.write_text(json.dumps(found) + "\n")
        # By key: the float types of later ones are known when earlier ones are measured.
        return sum(self._one(key) for key in only or keys)

    def _one(self, key: str) -> int:
        candidate = next(one for one in self._candidates() if one.key == key)
        if self.args.resume and kept(self._file(key), self.setting):
            self._say(f"{candidate.name}: kept")
            return 0
        self._say(candidate.name)
        try:
            measure(candidate, self.setting, self._file(key))
        except UserError as error:
            self._say(f"{candidate.name}: {error}")
            return 1
        return 0

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _say(self, text: str) -> None:
        print(f"suite: {self.shape}: {text}", file=sys.stderr, flush=True)

    def _files(self) -> dict[str, dict[str, Any]]:
        """What each candidate's file holds, by key."""
        return {file.stem: json.loads(file.read_text()) for file in sorted(self.folder.glob("*.json"))}

    def _check(self, results: dict[str, dict[str, Any]]) -> None:
        """That all were asked as this run asks."""
        one_setting({str(self._file(key)): one["setting"] for key, one in results.items()}, self.asked)

    def _measured(self) -> MeasuredShape:
        """All that was asked as this run asks."""
        results = {key: one for key, one in self._files().items() if one["setting"] == self.asked}
        machine = json.loads(self.limits_file.read_text()) if self.limits_file.exists() else None
        rates = machine["matmul"] if machine else {}
        bandwidth = machine["bandwidth"]["best"] if machine else 0.0
        rows = limits(WORK[self.shape], bandwidth, rates, self.setting.output_tokens) if machine else []
        return MeasuredShape(
            self.shape, self.setting.output_tokens, results, {row["scheme"]: row for row in rows}, rates
        )

    def _candidates(self) -> list[Candidate]:
        measured, users = self._measured(), max(users for users, _ in self.asked["cells"])
        types = []
        for side in ("ours", "a"):
            key = measured.fastest(side, users)
            types.append(measured.results[key]["scheme"] if key else "bfloat16")
        return self.maker.candidates(*types)

    def summarise(self) -> None:
        """Print the tables and write the summary of all that is there."""
        if self.args.list:
            return
        self._check(self._files())
        measured = self._measured()
        if not measured.results:
            return
        order = [candidate.key for candidate in self._candidates()]
        # What was measured on a processor with other float types has keys that would not be measured on this one.
        order += [key for key in measured.results if key not in order]
        results = {key: measured.results[key] for key in order if key in measured.results}
        rows = target_rows(measured)
        print(f"{self.shape}, {self.setting.output_tokens} output tokens")
        if bfloat16_is_native() is False:
            print("The processor does not multiply bfloat16 itself: it is emulated, for every server alike.")
        print("\n".join(align(table(results, measured))))
        print("\n".join(caption(results)))
        print("\n".join(align([("target", "is", "result", "reached", "from"), *map(_target_row, rows)])))
        summary = {
            "environment": environment(sys.argv),
            "shape": self.shape,
            "setting": self.asked,
            "bfloat16_is_native": bfloat16_is_native(),
            "machine": json.loads(self.limits_file.read_text()) if self.limits_file.exists() else None,
            "limits": measured.limits,
            "targets": rows,
            "commits": {
                key: {name: one["environment"][name] for name in ("git", "date")} for key, one in results.items()
            },
            "caption": caption(results),
            "candidates": list(results.values()),
        }
        file = self.args.out / f"{self.shape}-{self.setting.output_tokens}.json"
        file.write_text(json.dumps(summary, indent=1) + "\n")
        self._say(f"wrote {file}")


def _target_row(row: dict[str, Any]) -> tuple[str, ...]:
    reached = {True: "yes", False: "no", None: "-"}[row["reached"]]
    return (row["what"], row["target"], "-" if row["result"] is None else f"{row['result']:.3g}", reached, row["from"])


def one_setting(found: dict[str, dict[str, Any]], expected: dict[str, Any]) -> None:
    """Settings by file.

    Raises:
        UserError: some are not the expected one; a table of them would compare what was asked differently.
    """
    others = {file: setting for file, setting in found.items() if setting != expected}
    if others:
        lines = [f"  {file}: {_differences(setting, expected)}" for file, setting in others.items()]
        raise UserError(
            "one table holds one setting, and these were asked otherwise; measure them again or move them away, or "
            "give their flags:\n" + "\n".join(lines)
        )


def _differences(setting: dict[str, Any], expected: dict[str, Any]) -> str:
    names = sorted(name for name in {*setting, *expected} if setting.get(name) != expected.get(name))
    return ", ".join(f"{name} {setting.get(name)} in place of {expected.get(name)}" for name in names)


if __name__ == "__main__":
    run("suite", main)
