"""Retrains the bundled demo model from nothing: pictures, questions, encoder, language model, adapter.

example: qwen-vqa demo-train --out runs/demo

Every stage saves its work in --out; the same command goes on where an interrupted one stopped.
"""

import argparse
import json
import platform
import shutil
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from qwen_vqa.plugin.checkpoint_files import ADAPTER_FOLDER
from qwen_vqa.plugin.command.command_parser import CommandParser
from qwen_vqa.plugin.command.installed_command import typed_command
from qwen_vqa.train.demo.demo_flags import build_parser
from qwen_vqa.train.demo.machine import processor_name


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="qwen-vqa demo-train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options = build_parser(parser).parse_args(argv)
    train(options, argv if argv is not None else sys.argv[1:])


def train(options: argparse.Namespace, argv: list[str]) -> Path:
    """All stages; a stage whose result is there is not done again."""
    import torch  # the flags are read without it

    from qwen_vqa.train.demo import demo_adapter, demo_evaluation, example_images, language, pretraining
    from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference

    torch.set_num_threads(options.workers)
    times = Stopwatch(options.out / "minutes.json")
    encoder_file = None
    if options.start_from:
        begin_with(options.start_from, options.out / language.BASE)
    else:
        with times("encoder"):
            encoder_file = pretraining.train(options.out, options.encoder_steps, options.seed, options.workers)
    checkpoint = options.out / "checkpoint"
    with times("language"):
        if not (checkpoint / "config.json").exists():
            language.train_language(
                encoder_file,
                options.out,
                options.pictures,
                options.steps,
                options.seed,
                options.workers,
                learning_rate=options.learning_rate,
            )
    with times("adapter"):
        features = language.stage_features(options.out, options.pictures)
        demo_adapter.train_adapter(
            checkpoint, features, options.out, options.adapter_steps, options.seed, options.workers
        )
    with times("evaluation"):
        model, processor = load_reference(checkpoint, torch.float32), load_processor(checkpoint)
        table = demo_evaluation.evaluate(model, processor, options.evaluate)
        table |= demo_evaluation.evaluate_adapter(checkpoint, options.evaluate)
    demo_evaluation.print_table(table)
    command = "qwen-vqa demo-train " + " ".join(argv)
    write_results(options.out / "results.json", table, times.minutes, command, options.seed)
    print(f"the checkpoint is {checkpoint}; serve it: {typed_command()} serve {checkpoint}", flush=True)
    example_images.make_examples(checkpoint, options.out / "images")
    return checkpoint


def begin_with(checkpoint: Path, base: Path) -> None:
    """A copy of the checkpoint, without its adapters, as the language stage's base."""
    if not (base / "config.json").exists():
        from qwen_vqa.train.model.reference_checkpoint import load_reference

        load_reference(checkpoint)  # names what is wrong with it
        shutil.copytree(checkpoint, base, ignore=shutil.ignore_patterns(ADAPTER_FOLDER), dirs_exist_ok=True)


class Stopwatch:
    """Minutes a stage, printed and kept in a file over restarts."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.minutes: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    def __call__(self, stage: str) -> "Stopwatch":
        self.stage = stage
        return self

    def __enter__(self) -> None:
        self.started = time.time()
        print(f"== {self.stage} ({datetime.now():%H:%M})", flush=True)

    def __exit__(self, *error: object) -> None:
        spent = (time.time() - self.started) / 60
        self.minutes[self.stage] = round(self.minutes.get(self.stage, 0.0) + spent, 1)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.minutes, indent=2) + "\n")
        print(f"== {self.stage}: {self.minutes[self.stage]} min so far", flush=True)


def write_results(file: Path, table: dict, minutes: dict[str, float], command: str, seed: int) -> None:
    """The table with what a reader needs to repeat it."""
    import torch
    import transformers

    results = {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "machine": f"{torch.get_num_threads()} threads, {processor_name()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "command": command,
        "seed": seed,
        "minutes": minutes,
        "skills": table,
    }
    file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
