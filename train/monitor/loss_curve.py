"""A run's loss, and its accuracy on held-out questions, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

ACCURACY = "eval_accuracy"
_SMOOTHED_OVER = 20  # points of a window
_BLUE, _GREEN, _GREY = "#2f6fdf", "#1a7f4b", "#9aa4af"


def draw_loss_curve(history: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Write a PNG of a Trainer's `log_history`: the loss of each step and its running mean, and each evaluation.

    Nothing is written before there is a loss.
    """
    loss = _series(history, "loss")
    if len(loss):
        loss_figure(loss, _series(history, ACCURACY), title).savefig(file)


def loss_figure(loss: np.ndarray, accuracy: np.ndarray, title: str) -> Figure:
    """Steps and losses [steps, 2], steps and accuracies from 0 to 1 [evaluations, 2], as a picture."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(loss[:, 0], loss[:, 1], color=_GREY, linewidth=0.8, alpha=0.7, label="loss of a step")
    axes.plot(loss[:, 0], _running_mean(loss[:, 1]), color=_BLUE, linewidth=1.8, label="running mean")
    axes.set(title=title, xlabel="step", ylabel="loss", ylim=(0, None))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no step 2.5
    axes.grid(alpha=0.25)
    lines = list(axes.lines)
    if len(accuracy):
        right = axes.twinx()
        right.plot(accuracy[:, 0], 100 * accuracy[:, 1], "o-", color=_GREEN, label="accuracy, held out")
        right.set(ylabel="accuracy (%)", ylim=(0, 100))
        lines += right.lines
    figure.legend(handles=lines, frameon=False, loc="outside lower center", ncols=len(lines))
    return figure


def _series(history: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """Steps and values [entries, 2]; of a step that was done again after a resume, the last."""
    found = {entry["step"]: float(entry[key]) for entry in history if key in entry}
    return np.array(sorted(found.items())).reshape(-1, 2)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and those before it in the window."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - _SMOOTHED_OVER)
    return (sums[ends] - sums[starts]) / (ends - starts)
