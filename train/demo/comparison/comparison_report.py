"""What `train.demo.compare` found: as numbers, as a table and as a picture."""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure

from qwen_vqa.train.demo.comparison.comparison_runs import FIRST, Run, TrainingPhase
from qwen_vqa.train.demo.machine import processor_name

MEAN = "mean"
# What the methods and the data sets are called in the picture and in train/README.md.
METHODS = {
    "one stage": "one stage, LoRA on attention and MLP",
    "two stages": "two stages, LoRA on attention and MLP",
    "attention only": "one stage, LoRA on attention only",
}
DATA_SETS = {
    "llava": "LLaVA-Instruct's form",
    "textvqa": "TextVQA's form",
    "vizwiz": "VizWiz' form",
    MEAN: "mean of the three",
}
_COLOURS = ("#2f6fdf", "#1a7f4b", "#c2571a")


def summary(runs: list[Run], flops: dict[TrainingPhase, int], options: argparse.Namespace) -> dict[str, Any]:
    """Settings, compute, and of each method and data set the accuracy of each seed, in percent."""
    by_name = {(phase.stage, phase.modules): value for phase, value in flops.items()}
    found: dict[str, Any] = {}
    for run in runs:
        result = json.loads(run.result.read_text())
        phases = [
            {
                "stage": phase.stage,
                "lora": [] if phase.stage == "align" else list(phase.modules),
                "steps": steps,
                "gflop_a_step": round(by_name[phase.stage, phase.modules] / 1e9, 2),
            }
            for phase, steps in zip(run.phases, result["steps"], strict=True)
        ]
        total = sum(phase["steps"] * phase["gflop_a_step"] for phase in phases) / 1e3
        of_method = found.setdefault(run.method, {"phases": phases, "tflop": round(total, 2), "seeds": {}})
        of_method["seeds"][run.seed] = {"minutes": round(result["minutes"], 1), **result["table"]}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{torch.get_num_threads()} threads, {processor_name()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "settings": {name: getattr(options, name) for name in ("steps", "align_share", "train", "val", "jobs")},
        "methods": found,
    }


def accuracies(results: dict[str, Any], method: str) -> dict[str, list[float]]:
    """Of each data set, and of their mean, the accuracy of each seed in percent."""
    seeds = results["methods"][method]["seeds"].values()
    names = [name for name in next(iter(seeds)) if name != "minutes"]
    columns = {name: [seed[name]["own"] for seed in seeds] for name in names}
    return columns | {MEAN: [float(np.mean(values)) for values in zip(*columns.values(), strict=True)]}


def table(results: dict[str, Any]) -> str:
    """A row a method with the mean and each seed, and how it stands to the first method."""
    ways = results["methods"]
    columns = {method: accuracies(results, method) for method in ways}
    names = list(columns[next(iter(ways))])
    lines = [f"exact match in %, n = {results['settings']['val']} a data set: mean of the seeds (each seed)"]
    lines.append(f"{'':<16}{'steps':>10}{'TFLOP':>8}" + "".join(f"{name:>26}" for name in names))
    for method, found in ways.items():
        steps = "+".join(str(phase["steps"]) for phase in found["phases"])
        cells = "".join(f"{_cell(columns[method][name]):>26}" for name in names)
        lines.append(f"{method:<16}{steps:>10}{found['tflop']:>8.1f}{cells}")
    for method in ways:
        if method != FIRST and FIRST in ways:
            lines += [_verdict(method, name, columns[method][name], columns[FIRST][name]) for name in names]
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    return f"{np.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def _verdict(method: str, name: str, ours: list[float], first: list[float]) -> str:
    differences = np.subtract(ours, first)
    same_sign = bool((differences > 0).all() or (differences < 0).all())
    kind = "the same sign with every seed" if same_sign else "within the seeds' spread"
    each = ", ".join(f"{value:+.1f}" for value in differences)
    return f"{method} - {FIRST}, {name}: {differences.mean():+.1f} points ({each}): {kind}"


def draw(results: dict[str, Any], file: Path) -> None:
    """Write `comparison_figure` as PNG."""
    comparison_figure(results).savefig(file)


def comparison_figure(results: dict[str, Any]) -> Figure:
    """A bar a method and data set, the seeds as points on it."""
    ways = list(results["methods"])
    names = list(accuracies(results, ways[0]))
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(ways)
    for place, method in enumerate(ways):
        for column, values in enumerate(accuracies(results, method).values()):
            x = column + (place - (len(ways) - 1) / 2) * width
            label = METHODS[method] if column == 0 else None
            axes.bar(x, np.mean(values), width * 0.92, color=_COLOURS[place], alpha=0.55, label=label)
            axes.plot([x] * len(values), values, "o", color=_COLOURS[place], markersize=5, markeredgecolor="white")
            axes.annotate(f"{np.mean(values):.1f}", (x, 1), ha="center", fontsize=8)
    axes.set_xticks(range(len(names)), [DATA_SETS[name] for name in names])
    axes.set(ylabel="exact match (%)", ylim=(0, 100))
    tflop = results["methods"][ways[0]]["tflop"]
    axes.set_title(f"After equal compute ({tflop:.1f} TFLOP of training): mean, and each seed as a point", fontsize=11)
    figure.legend(frameon=False, loc="outside lower center", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure
