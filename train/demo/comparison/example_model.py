"""`qwen-vqa train` from data sets to a model that sees, in minutes: the demo's encoder and language model, with a
fresh connector between them and a fresh LoRA, learn from three rendered data sets in their releases' formats.

    python -m qwen_vqa.train.demo.comparison.example_model serving/demo_checkpoint --out runs/example

Prints the command that it runs, and at the end how often the answer is the majority's to the letter, next to the same
model without the picture and with another question's picture.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import torch

from qwen_vqa.plugin.command.command_parser import seed_number
from qwen_vqa.plugin.command.installed_command import installed_command
from qwen_vqa.train.data.preparation import prepare_data
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.demo.demo_evaluation import Evaluator, percent
from qwen_vqa.train.drawn.example_data import write_data_sets
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference, save_checkpoint
from qwen_vqa.train.model.torch_layers import TorchLayers
from qwen_vqa.train.training_config import TrainingConfig

FLAGS = (
    *("--stage", "joint", "--target-modules", "attention", "mlp", "--rank", "16", "--alpha", "32", "--dropout", "0"),
    *("--learning-rate", "2e-3", "--connector-learning-rate", "3e-3", "--batch-size", "32", "--accumulation", "1"),
    *("--precision", "float32", "--no-gradient-checkpointing", "--cache-features", "--save-steps", "100"),
)
CHUNK = 50


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", type=Path, help="the demo checkpoint, serving/demo_checkpoint")
    add("--out", type=Path, required=True, help="folder for data, base and run; the result is in OUT/run/model")
    add("--train", type=int, default=1500, help="training entries of each data set (default: %(default)s)")
    add("--val", type=int, default=150, help="held-out entries of each data set (default: %(default)s)")
    add("--epochs", type=float, default=2, help="(default: %(default)s)")
    add("--seed", type=seed_number, default=0, help="(default: %(default)s)")
    options = parser.parse_args(argv)
    started = time.time()
    base = make_base(options.checkpoint, options.out / "base", options.seed)
    data = write_data_sets(options.out / "data", "train", options.train)
    words = ["train", str(base), *(word for text in data for word in ("--data", text)), "-o", str(options.out / "run")]
    words += [*FLAGS, "--epochs", str(options.epochs), "--seed", str(options.seed)]
    print("qwen-vqa", *words, flush=True)
    subprocess.run(installed_command(*words), check=True)
    held_out = write_data_sets(options.out / "data", "val", options.val)
    table = measure(options.out / "run" / "model", held_out, options.out / "val")
    print(f"{'data set':<10}{'n':>6}{'accuracy':>10}{'no picture':>12}{'other picture':>15}")
    for name, row in table.items():
        print(f"{name:<10}{row['n']:>6}{row['own']:>9.1f}%{row['none']:>11.1f}%{row['other']:>14.1f}%")
    print(f"{(time.time() - started) / 60:.1f} minutes, {torch.get_num_threads()} threads")
    (options.out / "results.json").write_text(json.dumps(table, indent=2) + "\n")


def make_base(checkpoint: Path, folder: Path, seed: int) -> Path:
    """The checkpoint with a connector that has learnt nothing, in float32."""
    model = load_reference(checkpoint, torch.float32)
    torch.manual_seed(seed)
    model.connector = model.config.new_connector(TorchLayers())
    save_checkpoint(folder, model, load_processor(checkpoint))
    return folder


def measure(model_folder: Path, data: list[str], scratch: Path) -> dict[str, dict[str, float]]:
    """For each data set the share of right answers in percent: with its own picture, with none, with another's."""
    model, processor = load_reference(model_folder, torch.float32), load_processor(model_folder)
    evaluator = Evaluator(model, processor)
    table = {}
    for text in data:
        source = DataSource.parse(text)
        dataset = prepare_data([source], processor, TrainingConfig(), scratch / source.name)
        samples = [dataset[index] for index in range(len(dataset))]
        row: dict[str, float] = {"n": len(samples)}
        for pictures, asked in (("own", samples), ("none", _blind(samples)), ("other", _swapped(samples))):
            chunks = [asked[start : start + CHUNK] for start in range(0, len(asked), CHUNK)]
            row[pictures] = percent([right for chunk in chunks for right in evaluator.samples_right(chunk)])
        table[source.name] = row
    return table


def _blind(samples: list[dict]) -> list[dict]:
    blind = []
    for sample in samples:
        question, answer = sample["messages"]
        text = [part for part in question["content"] if part["type"] == "text"]
        blind.append({**sample, "messages": [{**question, "content": text}, answer], "images": []})
    return blind


def _swapped(samples: list[dict]) -> list[dict]:
    others = samples[1:] + samples[:1]
    return [{**sample, "images": other["images"]} for sample, other in zip(samples, others, strict=True)]


if __name__ == "__main__":
    main()
