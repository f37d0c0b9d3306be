"""What a checkpoint holds, and what turning it back gives, without a server."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qwen_vqa.plugin.quantization import quantization_config
from qwen_vqa.quantize.calibration import calibrate
from qwen_vqa.quantize.checkpoint import DequantisedLayers, RoundedLinear, load_dequantised
from qwen_vqa.quantize.int4 import Int4
from qwen_vqa.quantize.layers import select_layers, tensor_sizes
from qwen_vqa.quantize.options import Options, output_bytes
from qwen_vqa.quantize.quality import compare, layer_errors
from qwen_vqa.quantize.run import quantise
from qwen_vqa.quantize.samples import UserSamples
from qwen_vqa.quantize.scheme import make_scheme
from qwen_vqa.train.adapter import attach_adapter
from qwen_vqa.train.checkpoint import load_processor, load_reference

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
    assert sum(after.values()) == pytest.approx(output_bytes(with_adapter, scheme, selection), rel=0.02)


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


def test_merging_is_done_before_rounding(with_adapter: Path, tmp_path: Path) -> None:
    quantise(Options(with_adapter, tmp_path / "merged", "int8", merge_adapter="tiny-lora"))
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
    quantise(Options(with_adapter, tmp_path / "out", "int8"))
    assert (tmp_path / "out" / "adapters" / "tiny-lora").is_dir()
    assert "adapter tiny-lora: not measured on the quantised base" in capsys.readouterr().out
