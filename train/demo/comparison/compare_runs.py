"""One training stage against two, and LoRA on attention alone against attention and MLP, after equal compute.

    python -m qwen_vqa.train.demo.comparison.compare_runs serving/demo_checkpoint --out runs/comparison --jobs 2

Each run trains the demo's encoder and language model, with a fresh connector and a fresh LoRA, on the rendered data
sets of `train.demo.example`. Compute is counted: the operations of a step's matrix products, forward and backward
(`training_flops.py`). Every run gets those of `--steps` steps in one stage with LoRA on attention and MLP; where a
step is cheaper, it takes more of them. Runs that are done are not done again, and one that was stopped goes on. Prints
a table, and writes comparison.json and comparison.png.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.dataset import ConversationDataset
from qwen_vqa.train.data.feature_cache import FeatureDataset
from qwen_vqa.train.data.preparation import prepare_data
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.demo.comparison.comparison_report import draw, summary, table
from qwen_vqa.train.demo.comparison.comparison_runs import (
    FIRST,
    Run,
    TrainingPhase,
    carry_out,
    methods,
    with_equal_compute,
)
from qwen_vqa.train.demo.comparison.example_model import make_base
from qwen_vqa.train.demo.comparison.training_flops import step_flops
from qwen_vqa.train.drawn.example_data import write_data_sets
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference

RESULTS_FILE, CHART_FILE = "comparison.json", "comparison.png"
SETTINGS_FILE, FLOPS_FILE = "settings.json", "flops.json"


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    try:
        compare(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", type=Path, help="the demo checkpoint, serving/demo_checkpoint")
    add("--out", type=Path, required=True, help="folder for data, runs and results")
    add("--steps", type=int, default=120, help="in one stage with LoRA on both (default: %(default)s)")
    add("--align-share", type=float, default=0.25, help="of two stages' compute for the first (default: %(default)s)")
    add("--train", type=int, default=1500, help="training entries of each data set (default: %(default)s)")
    add("--val", type=int, default=200, help="held-out entries of each data set (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    names = list(methods(0.5))
    add("--methods", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names} (default: all)")
    add("--jobs", type=int, default=1, help="runs at the same time; they share the cores (default: %(default)s)")
    options = parser.parse_args(argv)
    for name in ("steps", "train", "val", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; it must be 1 or more")
    if not 0 < options.align_share < 1:
        parser.error(f"--align-share is {options.align_share}; it must be between 0 and 1")
    return options


def compare(options: argparse.Namespace) -> None:
    """Do what is not done yet, and report.

    Raises:
        UserError: the folder holds a comparison of another size, or a run failed.
    """
    _check_settings(options)
    data, held_out = _data(options.out, "train", options.train), _data(options.out, "val", options.val)
    datasets = [_prepare(options, seed, data) for seed in options.seeds]
    flops = _flops(options, datasets[0])
    runs = _runs(options, flops)
    _carry_out([run for run in runs if not run.result.is_file()], data, held_out, options.jobs)
    results = summary(runs, flops, options)
    (options.out / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n")
    draw(results, options.out / CHART_FILE)
    print(table(results))
    print(f"wrote {options.out / RESULTS_FILE} and {options.out / CHART_FILE}")


def _check_settings(options: argparse.Namespace) -> None:
    settings = {name: getattr(options, name) for name in ("steps", "align_share", "train", "val")}
    file = options.out / SETTINGS_FILE
    if file.is_file() and (began := json.loads(file.read_text())) != settings:
        raise UserError(f"{options.out} holds a comparison with {began}, not {settings}: give another --out.")
    options.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings) + "\n")


def _data(out: Path, split: str, number: int) -> list[str]:
    """What `--data` takes for the rendered data sets; drawn if they are not there."""
    file = out / f"data-{split}.json"
    if not file.is_file():
        file.write_text(json.dumps(write_data_sets(out / "data", split, number)) + "\n")
    return json.loads(file.read_text())


def _prepare(options: argparse.Namespace, seed: int, data: list[str]) -> ConversationDataset:
    """What a seed's runs share: the fresh connector, the samples' order, and the features of their pictures."""
    base, features = options.out / f"base-{seed}", options.out / f"features-{seed}"
    if not (base / "config.json").is_file():
        make_base(options.checkpoint, base, seed)
    processor, config = load_processor(base), methods(0.5)[FIRST][0].config(seed)
    dataset = prepare_data([DataSource.parse(text) for text in data], processor, config, features)
    FeatureDataset(dataset, load_reference(base, torch.float32), processor, features, torch.device("cpu"))
    return dataset


def _flops(options: argparse.Namespace, dataset: ConversationDataset) -> dict[TrainingPhase, int]:
    """Operations of a step of each phase: on the same batch for all, of samples with a picture each.

    Counted once for all runs in the folder, which get their steps from it.
    """
    phases = [phase for phases in methods(options.align_share).values() for phase in phases]
    file = options.out / FLOPS_FILE
    if not file.is_file():
        seed = options.seeds[0]
        size = phases[0].config(seed).batch_size
        candidates = (dataset[index] for index in range(min(2 * size, len(dataset))))
        samples = [sample for sample in candidates if sample["images"]][:size]
        counted = [step_flops(options.out / f"base-{seed}", samples, phase.config(seed)) for phase in phases]
        file.write_text(json.dumps(counted) + "\n")
    return dict(zip(phases, json.loads(file.read_text()), strict=True))


def _runs(options: argparse.Namespace, flops: dict[TrainingPhase, int]) -> list[Run]:
    ways = methods(options.align_share)
    budget = options.steps * flops[ways[FIRST][0]]
    return [
        Run(
            method,
            seed,
            with_equal_compute(ways[method], flops, budget),
            options.out / f"{method.replace(' ', '-')}-{seed}",
            options.out / f"base-{seed}",
            options.out / f"features-{seed}",
        )
        for seed in options.seeds
        for method in options.methods
    ]


def _carry_out(runs: list[Run], data: list[str], held_out: list[str], jobs: int) -> None:
    threads = max(1, torch.get_num_threads() // jobs)
    print(
        f"{len(runs)} runs to do, {jobs} at a time with {threads} threads each; their logs are in log.txt", flush=True
    )
    started = time.time()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(carry_out, run, data, held_out, threads): run for run in runs}
        for done, future in enumerate(as_completed(waiting), start=1):
            future.result()
            run, minutes = waiting[future], (time.time() - started) / 60
            left = minutes / done * (len(runs) - done)
            print(f"{run.folder.name} done, {done} of {len(runs)}, {minutes:.1f} min, {left:.0f} min left", flush=True)


if __name__ == "__main__":
    sys.exit(main())
