"""What a checkpoint holds, and what turning it back gives, without a server."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qwen_vqa.plugin.quantization import RECORD_FILE, quantization_config
from qwen_vqa.quantize.calibration import calibrate
from qwen_vqa.quantize.checkpoint import DequantisedLayers, RoundedLinear, load_dequantised
from qwen_vqa.quantize.command import main
from qwen_vqa.quantize.int4 import Int4
from qwen_vqa.quantize.layers import select_layers, tensor_sizes
from qwen_vqa.quantize.options import output_bytes
from qwen_vqa.quantize.quality import compare, layer_errors
from qwen_vqa.quantize.run import quantise
from qwen_vqa.quantize.samples import UserSamples
from qwen_vqa.quantize.scheme import GROUP_SIZES, largest_group_size, make_scheme, scheme_from_config
from qwen_vqa.train.adapter import attach_adapter
from qwen_vqa.train.checkpoint import load_processor, load_reference
from tests.quantize.anywhere import anywhere

# The largest error of each scheme, relative to the largest weight that shares a scale with the one rounded: half a
# step of its grid; a whole step for int4, where the side opposite to the largest weight lacks the last one; and
# float16's rounding more for bitsandbytes, which takes nothing wider.
LARGEST_ERRORS = {"int8": 1 / 254, "int8-bnb": 1.05 / 254, "fp8": 1 / 16, "int4": 1 / 8, "nf4": 0.16}


@pytest.mark.parametrize("scheme", LARGEST_ERRORS)
def test_weights_come_back_within_the_grid(scheme: str) -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    made = make_scheme(scheme, 32)
    back = made.dequantise(made.quantise(weight))
    error = (back - weight).abs().amax(dim=1) / weight.abs().amax(dim=1)
    assert error.max() <= LARGEST_ERRORS[scheme] * 1.01
    assert error.max() > LARGEST_ERRORS[scheme] / 20


@pytest.mark.parametrize("scheme", LARGEST_ERRORS)
def test_encoder_connector_and_embeddings_stay(scheme: str, quantised: Callable[..., Path], with_adapter: Path) -> None:
    before, after = tensor_sizes(with_adapter), tensor_sizes(quantised(scheme))
    kept = [name for name in before if ("self_attn" not in name and ".mlp." not in name) or "vision" in name]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    selection = select_layers(with_adapter)
    assert len(selection.shapes) == 14
    assert sum(after.values()) == pytest.approx(
        output_bytes(with_adapter, make_scheme(scheme, 64), selection), rel=0.02
    )


def test_the_encoder_is_quantised_on_request(quantised: Callable[..., Path]) -> None:
    model = load_dequantised(quantised("int8", encoder=True))
    rounded = [name for name, layer in model.named_modules() if isinstance(layer, RoundedLinear)]
    assert sum(name.startswith("vision_encoder.") for name in rounded) == 12
    assert not any(name.startswith("connector.") for name in rounded)


def test_fp8_is_what_vllm_takes_for_w8a8(quantised: Callable[..., Path]) -> None:
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

    config = CompressedTensorsConfig.from_config(quantization_config(quantised("fp8")))
    parts = config.target_scheme_map["Linear"]
    assert config._is_fp8_w8a8(parts["weights"], parts["input_activations"])


def test_calibration_beats_rounding_to_nearest(with_adapter: Path, questions: Path) -> None:
    original, processor = load_reference(with_adapter), load_processor(with_adapter)
    samples, scheme = UserSamples(str(questions)).calibration(8), Int4(64)
    tuned = calibrate(load_reference(with_adapter), processor, samples, scheme, iterations=15, seed=0)
    assert tuned.keys() == select_layers(with_adapter).shapes.keys()

    def error(tensors: dict) -> float:
        """Of the logits, all weights rounded."""
        model = load_reference(with_adapter)
        for name, parts in tensors.items():
            model.get_submodule(name).weight.data = scheme.dequantise(parts)
        result = compare(lambda: original, lambda: model, processor, {"all": samples})
        return result["kl"]["mean"]

    nearest = {name: scheme.quantise(original.get_submodule(name).weight.data) for name in tuned}
    assert error(tuned) < 0.9 * error(nearest)


def test_calibration_shows_each_step(with_adapter: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first layer of a large model takes long: what is left is told before it is done."""
    samples, model = UserSamples(str(questions)).calibration(4), load_reference(with_adapter)
    calibrate(model, load_processor(with_adapter), samples, Int4(64), iterations=12, seed=0)
    steps = [int(step) for step in re.findall(r"(\d+)/24 \[", capsys.readouterr().err)]
    assert steps[-1] == 24
    assert any(0 < step < 12 for step in steps)


def test_pictures_are_kept_at_the_processors_size(with_adapter: Path, questions: Path) -> None:
    """And give the same pixels."""
    processor = load_processor(with_adapter)
    [whole], [kept] = (
        UserSamples(str(questions)).calibration(1),
        UserSamples(str(questions), 0, processor).calibration(1),
    )
    assert (whole["images"][0].size, kept["images"][0].size) == ((90, 60), (64, 64))
    pixels = [
        processor.image_processor(sample["images"], return_tensors="pt")["pixel_values"] for sample in (whole, kept)
    ]
    assert torch.equal(*pixels)


@pytest.mark.parametrize(("width", "size"), [(384, 128), (192, 64), (160, 32)])
def test_the_group_size_is_the_largest_that_divides(width: int, size: int) -> None:
    assert largest_group_size({"a": (64, 1024), "b": (64, width)}) == size


@pytest.mark.parametrize("size", GROUP_SIZES)
def test_the_bits_of_int4_are_those_of_its_tensors(size: int) -> None:
    scheme = Int4(size)
    tensors = scheme.quantise(torch.randn(64, 1024))
    stored = sum(t.numel() * t.element_size() for name, t in tensors.items() if name != "weight_shape")
    assert 8 * stored / (64 * 1024) == scheme.bits


def test_the_demo_without_a_group_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """128 does not divide its width of 192. Merging the adapter spares its measurement."""
    arguments = ["--scheme", "int4", "--samples", "4", "--iterations", "2", "--merge-adapter", "sentences"]
    assert main([*arguments, "--elsewhere", "-o", str(tmp_path / "out")]) == 0
    assert "to int4 in groups of 64 (--group-size)" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / RECORD_FILE).read_text())["group_size"] == 64
    assert scheme_from_config(quantization_config(tmp_path / "out")).group_size == 64


def test_an_empty_working_directory_as_output(
    with_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays the same folder: it may be a mount point."""
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    quantise(anywhere(with_adapter, Path(), "int8"))
    assert Path.cwd().stat().st_ino == before
    assert load_dequantised(tmp_path).config.text_config.hidden_size == 128
    assert not (tmp_path / ".partial").exists()


def test_ctrl_c_is_said_and_leaves_nothing_behind(with_adapter: Path, questions: Path, tmp_path: Path) -> None:
    flags = ["--scheme", "int4", "--samples", "12", "--iterations", "100000", "--data", str(questions)]
    flags += ["--elsewhere"]  # where it can be served, too
    command = [sys.executable, "-m", "qwen_vqa.serving.cli", "quantize", str(with_adapter), *flags]
    run = subprocess.Popen([*command, "-o", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    assert any("calibrating" in line and "step" in line for line in run.stderr)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 130
    assert said.endswith("qwen-vqa: interrupted\n") and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_merging_into_a_folder_that_is_not_there_yet(with_adapter: Path, tmp_path: Path) -> None:
    quantise(anywhere(with_adapter, tmp_path / "new" / "folder" / "out", "int8", merge_adapter="tiny-lora"))
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["out"]


def test_merging_is_done_before_rounding(with_adapter: Path, tmp_path: Path) -> None:
    quantise(anywhere(with_adapter, tmp_path / "merged", "int8", merge_adapter="tiny-lora"))
    merged = load_reference(with_adapter, torch.float32)
    merged.language_model = attach_adapter(
        merged.language_model, with_adapter / "adapters" / "tiny-lora"
    ).merge_and_unload()
    back = load_dequantised(tmp_path / "merged", torch.float32)
    name = "language_model.model.layers.1.mlp.up_proj"
    difference = back.get_submodule(name).weight - merged.get_submodule(name).weight
    assert difference.abs().max() < merged.get_submodule(name).weight.abs().max() / 200
    assert not (tmp_path / "merged" / "adapters").exists()


def test_layer_errors_name_the_worst_first(quantised: Callable[..., Path], with_adapter: Path, questions: Path) -> None:
    samples, processor = UserSamples(str(questions)).calibration(4), load_processor(with_adapter)
    errors = {
        scheme: layer_errors(load_reference(with_adapter), DequantisedLayers(quantised(scheme)), processor, samples)
        for scheme in ("int8", "nf4")
    }
    assert errors["nf4"].keys() == select_layers(with_adapter).shapes.keys()
    assert list(errors["nf4"].values()) == sorted(errors["nf4"].values(), reverse=True)
    assert min(errors["nf4"].values()) > max(errors["int8"].values()) > 0


def test_an_adapter_without_questions_is_kept_and_said_to_be_unmeasured(
    with_adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantise(anywhere(with_adapter, tmp_path / "out", "int8"))
    assert (tmp_path / "out" / "adapters" / "tiny-lora").is_dir()
    assert "adapter tiny-lora: not measured on the quantised base" in capsys.readouterr().out
