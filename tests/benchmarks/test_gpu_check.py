"""The machinery of `make gpu-check`, on a CPU and a tiny shape."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_vqa.benchmarks.gpu_check.check_row import FAILED, NOT_POSSIBLE, PASSED, CheckRow, CheckSetting
from qwen_vqa.benchmarks.gpu_check.rows import ROWS
from qwen_vqa.benchmarks.gpu_check.runner import run_rows
from tests.tiny import REPOSITORY

HERE = "tests.benchmarks.gpu_check_rows"


def row(name: str, seconds: int = 60, **options: object) -> CheckRow:
    return CheckRow(name, "A", f"{HERE}:{name}", seconds, options)


def test_no_row_stops_the_others(tmp_path: Path):
    rows = [
        row("hangs", seconds=15), row("dies"), row("fails"), row("is_not_possible"), row("lacks_a_package"),
        row("passes", number=7),
    ]  # fmt: skip
    told: list[str] = []
    started = time.monotonic()
    found = run_rows(rows, CheckSetting("cpu", True, tmp_path), 600, lambda one, result, _: told.append(result.status))
    assert time.monotonic() - started < 300
    assert [one["status"] for one in found] == told == [FAILED, FAILED, FAILED, NOT_POSSIBLE, NOT_POSSIBLE, PASSED]
    hung, died, failed, impossible, lacking, passed = found
    assert "longer than 15 s" in hung["message"]
    assert "ended with 9: a last word" in died["message"]
    assert failed["message"] == "AssertionError: the numbers differ"
    assert impossible["message"] == "the card has no float8"
    assert lacking["message"] == "no_such_package cannot be imported: No module named 'no_such_package'"
    assert passed["measured"] == {"number": 7, "device": "cpu"}


def test_what_the_time_does_not_allow_is_said(tmp_path: Path):
    [found] = run_rows([row("passes", number=1)], CheckSetting("cpu", True, tmp_path), 1, lambda *_: None)
    assert found["status"] == NOT_POSSIBLE and "minutes are over" in found["message"]


def test_the_rows_have_names_of_their_own_and_fit_into_a_loan():
    assert len({one.name for one in ROWS}) == len(ROWS)
    assert {one.part for one in ROWS} == {"A", "B", "AB"}


def test_training_on_a_cpu_is_measured_from_the_checkout_alone(tmp_path: Path):
    """As on a machine where the project is not installed: what it is imported from is the checkout."""
    hidden = (
        "import runpy, sys; "
        "sys.meta_path[:] = [one for one in sys.meta_path if 'Editable' not in getattr(one, '__name__', '')]; "
        "sys.path[:] = [path for path in sys.path if path and '__editable__' not in path]; "
        "runpy.run_path('benchmarks/gpu_check', run_name='__main__')"
    )
    words = ["--device", "cpu", "--tiny", "--part", "A", "--json", str(tmp_path / "check.json")]
    words += [
        "--only",
        "checkpoint",
        "whole bfloat16, 512",
        "4-bit bfloat16, 512",
        "whole float16, 512",
        "32 at once",
        "layer",
    ]
    command = [sys.executable, "-c", hidden, *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    written = json.loads((tmp_path / "check.json").read_text())
    rows = {one["name"]: one for one in written["rows"]}
    assert written["environment"]["card"] == "no GPU"
    assert rows["a checkpoint of the shape"]["status"] == PASSED
    for name in ("whole bfloat16", "4-bit bfloat16"):
        measured = rows[f"train, {name}, 512 tokens"]
        assert measured["status"] == PASSED, measured
        assert measured["measured"]["steps/s"] > 0 and measured["measured"]["predicted GiB"] > 0
    assert rows["train, whole float16, 512 tokens"]["message"] == "float16 trains on a GPU alone"
    assert rows["transformers' generate, 32 at once"]["measured"]["output tokens/s"] > 0
    assert rows["calibrate a layer to int4"]["measured"]["hours for all layers"] > 0
    assert all(one["name"] in done.stdout for one in written["rows"])


def test_a_gpu_that_is_not_there_is_said(tmp_path: Path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    command = [sys.executable, "benchmarks/gpu_check", "--json", str(tmp_path / "check.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "there is no GPU to use" in done.stderr
    assert "Traceback" not in done.stderr
