"""What is to be seen of a run while it trains: progress, loss curve, TensorBoard, and answers to held-out questions."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from PIL import Image
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from qwen_vqa.plugin.command.installed_command import how_to_install
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.evaluation.checkpoint_model import CheckpointModel
from qwen_vqa.train.evaluation.page import write_page
from qwen_vqa.train.evaluation.questions import OWN, Prompt, prompts, read_questions
from qwen_vqa.train.evaluation.replies import Reply
from qwen_vqa.train.evaluation.results import Results
from qwen_vqa.train.evaluation.scoring import ALL_TYPES, group, score
from qwen_vqa.train.monitor.loss_curve import ACCURACY, draw_loss_curve
from qwen_vqa.train.monitor.prediction_sheet import draw_sheet
from qwen_vqa.train.monitor.progress_bar import TrainingProgress
from qwen_vqa.train.trainer import QwenVqaTrainer, trainable_parts

CURVE_FILE = "loss_curve.png"
EVALUATIONS, TENSORBOARD = "evaluations", "tensorboard"
MAX_TOKENS = 32


@dataclass(frozen=True)
class Monitor:
    """What a run is watched with; `questions` are asked every `steps` steps and at the end."""

    questions: Sequence[Prompt] = ()
    steps: int = 200
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.steps <= 0:
            raise UserError(f"--eval-steps is {self.steps}; it must be greater than 0.")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise UserError(f"--tensorboard needs the package tensorboard: {how_to_install('tensorboard')}")

    @classmethod
    def of(cls, args: argparse.Namespace, seed: int) -> "Monitor":
        """What the command line asks for; the held-out questions are read.

        Raises:
            UserError: they cannot be, or are those that are trained on.
        """
        if args.eval_samples <= 0:
            raise UserError(f"--eval-samples is {args.eval_samples}; it must be greater than 0.")
        named = [DataSource.parse(text) for text in args.eval_data]
        held_out = [replace(source, samples=source.samples or args.eval_samples) for source in named]
        trained = {(source.location, source.split) for source in map(DataSource.parse, args.data)}
        for source in held_out:
            if (source.location, source.split) in trained:
                raise UserError(f"--eval-data {source.location} is trained on, too: give questions that are held out.")
        asked = prompts(read_questions(held_out, seed)[0], [OWN], seed) if held_out else []
        return cls(asked, args.eval_steps, args.tensorboard)

    def attach(self, trainer: QwenVqaTrainer, output: Path) -> None:
        """Put the callbacks in place; they write into `output`."""
        parts = [name.replace("_", " ") for name, learned in trainable_parts(trainer.model).items() if learned]
        title = f"{output.name}: {' and '.join(parts)} in training"
        writer = None
        if self.tensorboard and trainer.is_world_process_zero():
            # Its package is an extra.
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(output / TENSORBOARD))
        if not trainer.args.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(TrainingProgress())
        if self.questions:
            batch_size = trainer.args.per_device_train_batch_size
            trainer.add_callback(HeldOutQuestions(self.questions, self.steps, output / EVALUATIONS, batch_size, writer))
        trainer.add_callback(LossCurve(output / CURVE_FILE, title))
        if writer is not None:
            trainer.add_callback(TensorBoardCallback(writer))


class LossCurve(TrainerCallback):
    """Draws the loss curve anew with each checkpoint and at the end."""

    def __init__(self, file: Path, title: str) -> None:
        self.file, self.title = file, title

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            draw_loss_curve(state.log_history, self.file, self.title)

    on_train_end = on_save


class HeldOutQuestions(TrainerCallback):
    """Asks the model in training, and writes the answers as `qwen-vqa evaluate` does, with a sheet of some of them.

    Each process asks its share. The means go into the Trainer's log history as `eval_accuracy` and
    `eval_NAME_accuracy`, and to TensorBoard.
    """

    def __init__(self, asked: Sequence[Prompt], steps: int, folder: Path, batch_size: int, writer: Any) -> None:
        self.asked, self.steps, self.folder = asked, steps, folder
        self.batch_size, self.writer = batch_size, writer
        self.last_step = -1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self._evaluate(state, kwargs["model"], kwargs["processing_class"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.last_step:
            self._evaluate(state, kwargs["model"], kwargs["processing_class"])

    def _evaluate(self, state: Any, model: Any, processor: Any) -> None:
        self.last_step = state.global_step
        was_training = model.training
        model.eval()
        replies = self._replies(CheckpointModel(model, processor, MAX_TOKENS, self.batch_size))
        model.train(was_training)
        if state.is_world_process_zero:
            self._write(replies, state)

    def _replies(self, model: CheckpointModel) -> list[Reply]:
        rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        share = self.asked[rank::processes]
        places = {id(prompt): place for place, prompt in enumerate(self.asked)}
        said: dict[int, tuple[str, str]] = {}
        with tqdm(total=len(share), desc="held-out questions", leave=False, disable=rank > 0) as bar:

            def record(reply: Reply) -> None:
                said[places[id(reply.prompt)]] = (reply.answer, reply.fault)
                bar.update()

            model.ask(share, record)
        if processes > 1:
            gathered: list[Any] = [None] * processes
            dist.all_gather_object(gathered, said)
            said = {place: texts for part in gathered for place, texts in part.items()}
        return [Reply(prompt, *said[place]) for place, prompt in enumerate(self.asked)]

    def _write(self, replies: list[Reply], state: Any) -> None:
        step = state.global_step
        folder = self.folder / f"step-{step:06}"
        folder.mkdir(parents=True, exist_ok=True)
        results = Results({"model": f"step {step}", "date": "", "step": step}, len(replies), replies=replies)
        results.write(folder / "results.json")
        write_page(results, folder / "wrong_answers.html")
        draw_sheet(replies, folder / "sheet.png")
        means = _means(replies)
        state.log_history.append({**means, "step": step})
        failed = f", {len(results.failed)} FAILED" if results.failed else ""
        shown = ", ".join(f"{name.removeprefix('eval_')} {value:.1%}" for name, value in means.items())
        tqdm.write(f"step {step}: held-out {shown} (n {len(replies)}{failed}); {folder}")
        if self.writer is not None:
            for name, value in means.items():
                self.writer.add_scalar(f"eval/{name.removeprefix('eval_')}", value, step)
            with Image.open(folder / "sheet.png") as sheet:
                self.writer.add_image("eval/predictions", np.asarray(sheet), step, dataformats="HWC")


def _means(replies: Sequence[Reply]) -> dict[str, float]:
    """Mean accuracy of all answers, and of each data set's."""
    scored = score(replies)
    means = {ACCURACY: sum(one.accuracy for one in scored) / len(scored)} if scored else {}
    for one in group(replies):
        if one.answer_type == ALL_TYPES and one.accuracy is not None:
            means[f"eval_{one.data_set}_accuracy"] = one.accuracy.mean
    return means
