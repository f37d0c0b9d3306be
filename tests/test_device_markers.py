"""Tests that a machine cannot run are skipped with the reason, and counted at the end."""

import subprocess
import sys

import pytest
import torch

from qwen_vqa.train.model.compute_device import Gpus
from tests.device_markers import reason_to_skip
from tests.tiny import REPOSITORY

CARD, NONE = Gpus(("NVIDIA T4",)), Gpus(reason="no driver")


@pytest.mark.parametrize(
    ("marks", "gpus", "reason"),
    [
        ({"cpu"}, CARD, "threads and float32, and here vLLM computes on cuda:0 (NVIDIA T4)"),
        ({"gpu"}, NONE, "need a GPU: no driver"),
        ({"cpu"}, NONE, None),
        ({"gpu"}, CARD, None),
        ({"parametrize"}, CARD, None),
    ],
)
def test_who_is_left_out(marks: set[str], gpus: Gpus, reason: str | None):
    found = reason_to_skip(marks, gpus)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_run_says_how_many_and_why():
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 1 and "tests that need a GPU: " in lines[0]
    assert f"{lines[0].split()[2]} skipped" in done.stdout
