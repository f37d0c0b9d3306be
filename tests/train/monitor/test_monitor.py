"""What is to be seen of a run while it trains."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.trainer_utils import get_last_checkpoint

from qwen_vqa.serving.cli import main
from qwen_vqa.train.monitor.loss_curve import loss_figure
from tests.train.releases import write_textvqa, write_vizwiz


@pytest.fixture(scope="module")
def watched(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with an evaluation after every second."""
    folder = tmp_path_factory.mktemp("watched")
    arguments = ["train", str(tiny_checkpoint), "--data", write_textvqa(folder / "train"), "-o", str(folder / "run")]
    arguments += ["--max-steps", "4", "--rank", "2", "--batch-size", "1", "--accumulation", "1", "--save-steps", "2"]
    arguments += ["--eval-data", write_vizwiz(folder / "eval"), "--eval-steps", "2", "--tensorboard"]
    assert main(arguments) == 0
    return folder / "run"


def test_held_out_questions_are_answered_during_the_run(watched: Path):
    assert sorted(path.name for path in (watched / "evaluations").iterdir()) == ["step-000002", "step-000004"]
    written = json.loads((watched / "evaluations/step-000004/results.json").read_text())
    assert (written["asked"], written["answered"], written["complete"]) == (3, 3, True)
    assert all(0 <= one["vqa_accuracy"] <= 1 for one in written["replies"])
    assert "VizWiz_train_00000000.jpg" in (watched / "evaluations/step-000004/wrong_answers.html").read_text()


def test_the_accuracy_is_in_the_log_of_the_checkpoint(watched: Path):
    last = get_last_checkpoint(str(watched))
    assert last is not None
    history = json.loads((Path(last) / "trainer_state.json").read_text())["log_history"]
    steps = [entry["step"] for entry in history if "eval_accuracy" in entry]
    assert steps == [2, 4]
    assert all(
        entry["eval_accuracy"] == entry["eval_vizwiz_accuracy"] for entry in history if entry.get("eval_accuracy")
    )


def test_a_sheet_shows_pictures_and_answers(watched: Path):
    with Image.open(watched / "evaluations/step-000002/sheet.png") as sheet:
        assert sheet.size == (1200, 354)
        pixels = np.asarray(sheet)
    assert len(np.unique(pixels[:, 300:600].reshape(-1, 3), axis=0)) > 20
    assert (pixels[:, 900:] == 255).all()  # three questions, four columns


def test_the_loss_curve_is_drawn(watched: Path):
    with Image.open(watched / "loss_curve.png") as curve:
        pixels = np.asarray(curve.convert("RGB"))
    for loss_or_accuracy in ((0x2F, 0x6F, 0xDF), (0x1A, 0x7F, 0x4B)):
        assert (pixels == loss_or_accuracy).all(axis=-1).any()


def test_tensorboard_has_loss_accuracy_and_the_sheet(watched: Path):
    events = EventAccumulator(str(watched / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("train/loss")) == 4
    assert [event.step for event in events.Scalars("eval/vizwiz_accuracy")] == [2, 4]
    assert [event.step for event in events.Images("eval/predictions")] == [2, 4]


def test_questions_that_are_trained_on_are_not_held_out(tiny_checkpoint: Path, tmp_path: Path, capsys):
    data = write_textvqa(tmp_path)
    arguments = ["train", str(tiny_checkpoint), "--data", data, "--eval-data", data, "-o", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "is trained on, too" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 9, 1000])
def test_the_loss_curve_has_whole_steps_on_its_axis(steps: int):
    loss = np.array([(step, 1.0 / step) for step in range(1, steps + 1)])
    figure = loss_figure(loss, loss[-1:], "a run")
    figure.canvas.draw()
    ticks = figure.axes[0].get_xticks()
    assert len(ticks) > 0
    assert (ticks == ticks.round()).all()
