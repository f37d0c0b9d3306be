"""What a report measures on: other questions than calibrated, and the original as it was rounded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_vqa.benchmarks.quantisation.report import main as report
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.quantize.quantize import quantise
from qwen_vqa.quantize.samples import UserSamples
from tests.quantize.anywhere import anywhere, eight_bits


def test_questions_are_others_than_calibrated(
    with_adapter: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the seeds, and in a file that has them in another order."""
    output = tmp_path / "int4"
    quantise(anywhere(with_adapter, output, "int4", samples=5, iterations=1, data=str(questions), seed=5))
    calibrated = {sample["sample_id"] for sample in UserSamples(str(questions), seed=5).calibration(5)}
    shuffled = questions.with_name("shuffled.jsonl")
    shuffled.write_text("\n".join(reversed(questions.read_text().splitlines())) + "\n")
    asked: list[dict] = []
    monkeypatch.setattr(
        "qwen_vqa.benchmarks.quantisation.report.quality",
        lambda before, after, groups, device: asked.append(groups) or {},
    )
    arguments = [str(with_adapter), str(output), "--no-speed", "-o", str(tmp_path / "report")]
    for more in ([], ["--seed", "0"], ["--seed", "1"]):
        for data in (questions, shuffled):
            report([*arguments, "--data", str(data), *more])
            assert json.loads((tmp_path / "report" / "report.json").read_text())["seed"] == int((more or ["", "5"])[1])
            [[*samples]] = asked.pop().values()
            assert {sample["sample_id"] for sample in samples} == {str(n) for n in range(12)} - calibrated
    with pytest.raises(UserError, match="none is left to measure on"):
        everything = tmp_path / "everything"
        quantise(anywhere(with_adapter, everything, "int4", samples=12, iterations=1, data=str(questions)))
        report([str(with_adapter), str(everything), "--no-speed", "--data", str(questions)])


def test_a_merged_adapter_is_on_both_sides(with_adapter: Path, questions: Path, tmp_path: Path) -> None:
    """The adapter changes every answer; int8 hardly any. Against the original without it, KL would be in nats."""
    output = tmp_path / "merged"
    quantise(anywhere(with_adapter, output, "int8", merge_adapter="tiny-lora"))
    arguments = ["--data", str(questions), "--no-speed", "-o", str(tmp_path / "report")]
    report([str(with_adapter), str(output), *arguments])
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["merged_adapter"] == "tiny-lora"
    assert 0 < numbers["kl"]["mean"] < 0.01
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.json", "report.md", "report.svg"]
    without = shutil.copytree(with_adapter, tmp_path / "without", ignore=shutil.ignore_patterns("adapters"))
    with pytest.raises(UserError, match=r"has the adapter tiny-lora merged into it, and .* has none"):
        report([str(without), str(output), *arguments])


def test_quality_is_kept_when_the_servers_fail(
    with_adapter: Path, quantised: Callable[..., Path], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> None:
        raise UserError("the server stopped with status 1")

    monkeypatch.setattr("qwen_vqa.benchmarks.quantisation.report.measure", fails)
    with pytest.raises(UserError, match="stopped with status 1"):
        report(
            [str(with_adapter), str(quantised(eight_bits())), "--data", str(questions), "-o", str(tmp_path / "report")]
        )
    assert json.loads((tmp_path / "report" / "report.json").read_text())["accuracy"]["questions"]["n"] == 12
