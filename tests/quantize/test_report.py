"""The report: its arithmetic, its files, and its measurements on real servers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from qwen_vqa.quantize.quality import accuracy_row, divergence, wilson
from qwen_vqa.quantize.report import main as report
from qwen_vqa.quantize.speed import Load, Side, measure


def test_a_share_has_wilsons_interval() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(49.0, abs=0.1), pytest.approx(94.3, abs=0.1))


def test_the_change_is_that_of_the_same_questions() -> None:
    row = accuracy_row([(True, True)] * 90 + [(True, False)] * 6 + [(False, True)] * 4)
    assert (row["original"], row["quantised"], row["change"]) == (96.0, 94.0, pytest.approx(-2.0))
    low, high = row["change_ci"]
    assert (low, high) == (pytest.approx(-8.3, abs=0.1), pytest.approx(4.4, abs=0.1))


def test_no_change_is_not_certain() -> None:
    low, high = accuracy_row([(True, True)] * 300)["change_ci"]
    assert (low, high) == (pytest.approx(-0.65, abs=0.01), pytest.approx(0.65, abs=0.01))


def test_divergence_of_two_distributions() -> None:
    before, after = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert divergence(before, after) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_its_files(with_adapter: Path, quantised: Callable[..., Path], questions: Path, tmp_path: Path) -> None:
    arguments = [str(with_adapter), str(quantised("int4")), "--data", str(questions), "--no-speed", "-o", str(tmp_path)]
    assert report(arguments) == 0
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["accuracy"]["questions"]["n"] == 12 - 4  # the others calibrated
    assert numbers["kl"]["mean"] > 0
    assert len(numbers["layer_errors"]) == 14
    assert "| weights on disk |" in (tmp_path / "report.md").read_text()
    picture = ElementTree.parse(tmp_path / "report.svg")
    assert "weights on disk" in "".join(picture.getroot().itertext())


def test_speed_is_measured_on_two_servers(with_adapter: Path, quantised: Callable[..., Path]) -> None:
    sides = [Side(with_adapter, "float32"), Side(quantised("int8"), "float32")]
    for side in measure(sides, Load(users=(1, 2), tokens=8, rounds=1)):
        assert side.decode.keys() == side.prefill.keys() == {1, 2}
        assert side.decode[1] == pytest.approx([1000 / side.tpot[1][0]])
        assert all(speed > 0 for each in (*side.decode.values(), *side.prefill.values()) for speed in each)
        assert side.resident_bytes > 2**28
        assert side.ready_bytes > 2**28
        assert side.load_seconds > 1
