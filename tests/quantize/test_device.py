"""Measuring and calibrating on another device than the CPU give the CPU's numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.quantize import options
from qwen_vqa.quantize.answer_quality import compare, layer_errors
from qwen_vqa.quantize.calibration import DecoderBlock, first_inputs
from qwen_vqa.quantize.layers import select_layers
from qwen_vqa.quantize.options import calibration_bytes, calibration_device, tuning_bytes
from qwen_vqa.quantize.quantised_checkpoint import DequantisedLayers, load_dequantised
from qwen_vqa.quantize.samples import UserSamples
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from tests.other_device import other_device
from tests.quantize.anywhere import anywhere
from tests.vllm_copy import passes_in_a_copy


@pytest.mark.parametrize("scheme", ["int8", "nf4", "int8-bnb"])
def test_answers_and_layers_are_compared_where_the_models_are(
    quantised: Callable[..., Path], with_adapter: Path, questions: Path, scheme: str
) -> None:
    passes_in_a_copy(measured_here_and_there, with_adapter, quantised(scheme), questions)


def measured_here_and_there(original: Path, quantised: Path, questions: Path) -> None:
    samples, processor = UserSamples(str(questions)).calibration(4), load_processor(original)

    def measured(device: torch.device) -> tuple[dict, dict]:
        answers = compare(
            lambda: load_reference(original).to(device),
            lambda: load_dequantised(quantised).to(device),
            processor,
            {"all": samples},
        )
        layers = DequantisedLayers(quantised)
        return answers, layer_errors(load_reference(original).to(device), layers, processor, samples)

    here, here_layers = measured(torch.device("cpu"))
    with other_device() as device:
        there, there_layers = measured(device)
    assert there["accuracy"] == here["accuracy"]
    assert there["kl"] == pytest.approx(here["kl"], rel=1e-3, abs=1e-6)
    assert here["kl"]["mean"] > 0
    assert there_layers == pytest.approx(here_layers, rel=1e-4)


def test_layers_are_calibrated_where_their_inputs_are(with_adapter: Path, questions: Path) -> None:
    """A layer as AutoRound calls it. Autograd does not run on the other device: tuning itself is left out."""
    passes_in_a_copy(calibrated_here_and_there, with_adapter, questions)


def calibrated_here_and_there(original: Path, questions: Path) -> None:
    samples, processor = UserSamples(str(questions)).calibration(3), load_processor(original)

    def outputs(device: torch.device) -> list[torch.Tensor]:
        model = load_reference(original).requires_grad_(False)
        inputs = first_inputs(model, processor, samples, device)
        decoder = model.language_model.model
        block = DecoderBlock(decoder.layers[0].float(), decoder.rotary_emb.to(device)).to(device)
        return [block(hidden).cpu() for hidden in inputs]

    here = outputs(torch.device("cpu"))
    with other_device() as device:
        there = outputs(device)
    for expected, actual in zip(here, there, strict=True):
        torch.testing.assert_close(actual, expected)


def test_calibration_takes_a_gpu_that_has_the_room(
    with_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The decision, with the numbers that it gets."""
    gpu, free = torch.device("cuda", 0), 0
    monkeypatch.setattr("qwen_vqa.train.model.compute_device.chosen_device", lambda asked: gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    job, selection = anywhere(with_adapter, tmp_path / "out", "int4", samples=100), select_layers(with_adapter)
    needed = calibration_bytes(job, selection, 512)[0] + tuning_bytes(job, selection, 512) + options.GIB
    free = needed
    assert calibration_device(job, selection, 512) == gpu
    free = needed - 1
    assert calibration_device(job, selection, 512) == torch.device("cpu")
    assert "on the CPU, since calibrating needs about" in capsys.readouterr().out
    job = anywhere(with_adapter, tmp_path / "out", "int4", samples=100, device="cuda")
    with pytest.raises(UserError, match=r"calibrating needs about .* lower --samples, or pass --device cpu"):
        calibration_device(job, selection, 512)
