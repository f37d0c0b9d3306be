"""The runs that `train.demo.compare` compares: their stages, their steps for equal compute, and how each is done."""

import argparse
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers.trainer_utils import get_last_checkpoint

from qwen_vqa.plugin.command.installed_command import installed_command
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.feature_cache import COUNT_FILE, FEATURE_FILE
from qwen_vqa.train.data.preparation import MIX_FILE, REPORT_FILE
from qwen_vqa.train.demo.comparison.example_model import FLAGS, measure
from qwen_vqa.train.export import CHECKPOINT_NAME
from qwen_vqa.train.recipe import config_for
from qwen_vqa.train.train_flags import build_parser
from qwen_vqa.train.training_config import TrainingConfig

BOTH, ATTENTION = ("attention", "mlp"), ("attention",)
FIRST = "one stage"  # the others are held against it
RESULT_FILE, LOG_FILE = "result.json", "log.txt"
_SHARED = (FEATURE_FILE, COUNT_FILE, MIX_FILE, REPORT_FILE)


@dataclass(frozen=True)
class TrainingPhase:
    """A stage of a run: its recipe, where the LoRA sits, its share of the run's compute, and its steps."""

    stage: str
    modules: tuple[str, ...]
    share: float
    steps: int = 1

    def words(self, seed: int) -> list[str]:
        """What `qwen-vqa train` is told of it."""
        words = [*FLAGS, "--stage", self.stage, "--target-modules", *self.modules, "--seed", str(seed)]
        return [*words, "--max-steps", str(self.steps), *(("--rank", "0") if self.stage == "align" else ())]

    def config(self, seed: int) -> TrainingConfig:
        """What `qwen-vqa train` makes of these words."""
        args = build_parser(argparse.ArgumentParser()).parse_args(["base", "-o", "run", *self.words(seed)])
        return config_for(args.stage, args)


@dataclass(frozen=True)
class Run:
    """One way to train with one seed, in a folder of its own; `features` holds what the seed's runs share."""

    method: str
    seed: int
    phases: tuple[TrainingPhase, ...]
    folder: Path
    base: Path
    features: Path

    @property
    def result(self) -> Path:
        """Where its result is once it is done."""
        return self.folder / RESULT_FILE


def methods(align_share: float) -> dict[str, tuple[TrainingPhase, ...]]:
    """The ways that are compared."""
    return {
        FIRST: (TrainingPhase("joint", BOTH, 1.0),),
        "two stages": (TrainingPhase("align", BOTH, align_share), TrainingPhase("finetune", BOTH, 1 - align_share)),
        "attention only": (TrainingPhase("joint", ATTENTION, 1.0),),
    }


def with_equal_compute(
    phases: tuple[TrainingPhase, ...], flops: dict[TrainingPhase, int], budget: int
) -> tuple[TrainingPhase, ...]:
    """The phases with as many steps as their shares of the budget buy; `flops` are those of a step."""
    return tuple(replace(phase, steps=max(1, round(phase.share * budget / flops[phase]))) for phase in phases)


def carry_out(run: Run, data: list[str], held_out: list[str], threads: int) -> None:
    """Train, ask the held-out questions, and write the result. What a run before left off is taken up again.

    Raises:
        UserError: training failed; the message has the end of its log.
    """
    torch.set_num_threads(threads)
    base, started = run.base, time.time()
    for number, phase in enumerate(run.phases):
        output = run.folder / f"{number}-{phase.stage}"
        if not (output / CHECKPOINT_NAME / "config.json").is_file():
            _train(base, output, phase, run, data, threads)
        base = output / CHECKPOINT_NAME
    table = measure(base, held_out, run.folder / "val")
    result = {"steps": [phase.steps for phase in run.phases], "minutes": (time.time() - started) / 60, "table": table}
    partial = run.result.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(run.result)


def _train(base: Path, output: Path, phase: TrainingPhase, run: Run, data: list[str], threads: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name in _SHARED:
        if not (output / name).exists():
            os.link(run.features / name, output / name)
    sources = [word for text in data for word in ("--data", text)]
    command = installed_command("train", str(base), *sources, "-o", str(output))
    command += [*phase.words(run.seed), *(("--resume",) if get_last_checkpoint(str(output)) else ())]
    with (run.folder / LOG_FILE).open("a") as log:
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=log, stderr=log)
    if done.returncode:
        end = (run.folder / LOG_FILE).read_text()[-1500:]
        raise UserError(f"{run.method}, seed {run.seed}: training ended with status {done.returncode}:\n{end}")
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
