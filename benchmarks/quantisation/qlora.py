"""QLoRA on the demo, next to LoRA: both trained on the same data, each served on the 16-bit base and on the nf4 base.

    python -m qwen_vqa.benchmarks.quantisation.qlora --out runs/qlora

Learns rendered data sets in TextVQA's and VizWiz' form; asks held-out questions of both through `qwen-vqa serve`, as
`qwen-vqa evaluate` does. What is in OUT already is not made again, so that an interrupted run goes on where it was.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.quantize.options import Options
from qwen_vqa.quantize.quantize import quantise
from qwen_vqa.serving import DEMO_CHECKPOINT
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.drawn.example_data import write_data_sets
from qwen_vqa.train.evaluation.questions import OWN, prompts, read_questions
from qwen_vqa.train.evaluation.scoring import Mean, Scored
from qwen_vqa.train.evaluation.server_model import ask_server
from qwen_vqa.train.export import ADAPTER_NAME
from qwen_vqa.train.verify.local_server import started_server

FORMS = ("textvqa", "vizwiz")
TRAINED = {"LoRA": "full", "QLoRA": "4bit"}
BASES = ("16-bit", "nf4")
FLAGS = (
    *(
        "--no-merge-adapter",
        "--stage",
        "joint",
        "--target-modules",
        "attention",
        "mlp",
        "--rank",
        "16",
        "--alpha",
        "32",
        "--dropout",
        "0",
    ),
    *("--learning-rate", "1e-3", "--connector-learning-rate", "1e-4", "--batch-size", "16", "--accumulation", "1"),
    *(
        "--epochs",
        "1",
        "--no-gradient-checkpointing",
        "--cache-features",
        "--save-steps",
        "1000",
        "--precision",
        "float32",
    ),
)
MAX_TOKENS = 32


def main() -> int:
    """Train, quantise, serve, ask; prints the table and writes OUT/results.json.

    Raises:
        UserError: a run, a server or a request failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="for data, runs and results.json")
    add("--train", type=int, default=800, help="training entries of each data set (default: %(default)s)")
    add("--val", type=int, default=200, help="held-out questions of each data set (default: %(default)s)")
    add(
        "--seed", type=int, default=0, help="of the adapter's first weights and the data's order (default: %(default)s)"
    )
    args = parser.parse_args()
    minutes = train_both(args.out, data_sets(args.out, "train", args.train), args.seed)
    held_out = data_sets(args.out, "val", args.val)
    table = {"base model, no adapter": {"16-bit": measure(DEMO_CHECKPOINT, None, held_out, args.seed)}}
    for name in TRAINED:
        model = args.out / name / "model"
        if not (args.out / name / "nf4").exists():
            # Measured below whatever it loses, so nothing is left out here.
            quantise(Options(model, args.out / name / "nf4", "nf4", data=held_out[1], adapter_bound=100.0))
        folders = zip(BASES, (model, args.out / name / "nf4"), strict=True)
        table[name] = {base: measure(folder, ADAPTER_NAME, held_out, args.seed) for base, folder in folders}
    result = {"environment": environment(sys.argv), "flags": FLAGS, "seed": args.seed, "minutes": minutes}
    (args.out / "results.json").write_text(json.dumps(result | {"accuracy": table}, indent=1) + "\n")
    print(shown(table))
    return 0


def data_sets(out: Path, split: str, number: int) -> list[str]:
    """What `--data` takes for the rendered data sets."""
    sets = write_data_sets(out / "data", split, number)
    return [text for text in sets if DataSource.parse(text).name in FORMS]


def train_both(out: Path, data: list[str], seed: int) -> dict[str, float]:
    """Both runs at once, with a thread each; minutes of those that were made."""
    started = time.monotonic()
    runs: dict[str, subprocess.Popen] = {}
    for name, load_in in TRAINED.items():
        if (out / name / "model").exists():
            continue
        words = ["train", str(DEMO_CHECKPOINT), *(word for text in data for word in ("--data", text))]
        words += ["-o", str(out / name), *FLAGS, "--load-in", load_in, "--seed", str(seed)]
        print("qwen-vqa", *words, flush=True)
        command = [sys.executable, "-m", "qwen_vqa.serving.cli", *words]
        runs[name] = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    failed = [name for name, run in runs.items() if run.wait() != 0]
    if failed:
        raise UserError(f"training failed: {', '.join(failed)}; the message is above.")
    return dict.fromkeys(runs, (time.monotonic() - started) / 60)


def measure(folder: Path, adapter: str | None, data: list[str], seed: int) -> dict[str, dict[str, Any]]:
    """VQA accuracy of each data set and of all, 0 to 1 with its interval, of a checkpoint served in bfloat16.

    Raises:
        UserError: a request failed.
    """
    questions, _ = read_questions([DataSource.parse(text) for text in data], seed)
    asked = prompts(questions, [OWN], seed)
    with started_server([str(folder), "--dtype", "bfloat16"], stdout=subprocess.DEVNULL) as (address, _):
        replies = ask_server(f"{address}/v1", adapter, asked, str(folder), MAX_TOKENS)
    fault = next((reply.fault for reply in replies if reply.fault), None)
    if fault is not None:
        raise UserError(f"{folder}: {fault}")
    scored = [Scored.of(reply) for reply in replies]
    groups = {name: [one.accuracy for one in scored if one.reply.prompt.question.data_set == name] for name in FORMS}
    means = {name: Mean.of(scores) for name, scores in (groups | {"all": [one.accuracy for one in scored]}).items()}
    return {name: asdict(mean) for name, mean in means.items() if mean}


def shown(table: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """As Markdown, a row for each adapter and data set."""
    lines = [
        f"| trained | data set | n | {' | '.join(f'on the {base} base' for base in BASES)} |",
        "|---|---|---|---|---|",
    ]
    for name, bases in table.items():
        for form in (*FORMS, "all"):
            cells = [_cell(bases[base][form]) if base in bases else "" for base in BASES]
            lines.append(f"| {name} | {form} | {bases['16-bit'][form]['count']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(mean: dict[str, Any]) -> str:
    return f"{100 * mean['mean']:.1f}% ({100 * mean['low']:.1f} to {100 * mean['high']:.1f})"


if __name__ == "__main__":
    run("qlora", main)
