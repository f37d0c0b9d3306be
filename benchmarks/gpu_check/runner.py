"""All rows, one after the other: each within its time, and none stopped by another's end."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qwen_vqa.benchmarks.gpu_check.check_row import FAILED, NOT_POSSIBLE, CheckRow, CheckSetting, Result

LEAST_SECONDS = 15  # in which a row can begin


def run_rows(
    rows: Sequence[CheckRow], setting: CheckSetting, seconds: float, ended: Callable[[CheckRow, Result, float], None]
) -> list[dict[str, Any]]:
    """What became of each row, in order; those for which the time is over are not possible.

    Args:
        seconds: for all of them.
        ended: called behind each, with the seconds that it took.
    """
    deadline = time.monotonic() + seconds
    found = []
    for row in rows:
        started = time.monotonic()
        left = deadline - started
        if left < LEAST_SECONDS:
            result = Result(NOT_POSSIBLE, f"the {seconds / 60:g} minutes are over (--minutes)")
        else:
            result = _in_a_process(row, setting, min(row.seconds, left))
        took = time.monotonic() - started
        ended(row, result, took)
        found.append({"name": row.name, "part": row.part, "seconds": round(took, 1), **result.as_json()})
    return found


def _in_a_process(row: CheckRow, setting: CheckSetting, seconds: float) -> Result:
    device, environment = setting.device, dict(os.environ)
    if setting.on_gpu:  # the only one that the row sees: the Trainer would spread a batch over all
        environment["CUDA_VISIBLE_DEVICES"] = _visible(torch.device(device).index or 0)
        device = "cuda:0"
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [sys.executable, "-m", f"{__package__}.one_row", json.dumps(asdict(row)), "--device", device]
        command += ["--folder", str(setting.folder), "--result", str(file), *(["--tiny"] if setting.tiny else [])]
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return Result(FAILED, f"it took longer than {seconds:.0f} s")
            finally:
                _end(process)
        if file.is_file():
            return Result(**json.loads(file.read_text()))
        last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        return Result(FAILED, f"the row's process ended with {status}: {last}")


def _visible(number: int) -> str:
    """The name of a GPU among those that this process sees."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[number] if names else str(number)


def _end(process: subprocess.Popen) -> None:
    """With the servers that it started, which are in its session."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
