"""QLoRA trains on what scheme nf4 serves: the trainer's 4-bit layers are the checkpoint's, byte for byte."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from qwen_vqa.plugin.quantization import quantization_config
from qwen_vqa.quantize.layers import select_layers, tensors_of
from qwen_vqa.train.model.reference_checkpoint import load_reference


@pytest.fixture(scope="module")
def trained_on(with_adapter: Path) -> dict[str, Linear4bit]:
    """The trainer's 4-bit layers, rounded."""
    model = load_reference(with_adapter, load_in="4bit")
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear4bit)}


def test_the_same_layers_are_rounded(trained_on: dict[str, Linear4bit], with_adapter: Path) -> None:
    assert trained_on.keys() == select_layers(with_adapter).shapes.keys()


def test_the_weights_are_the_same(trained_on: dict[str, Linear4bit], quantised: Callable[..., Path]) -> None:
    stored = dict(tensors_of(quantised("nf4")))
    for name, layer in trained_on.items():
        assert torch.equal(layer.weight.data, stored[f"{name}.weight"])
        for leaf, tensor in layer.weight.quant_state.as_dict(packed=True).items():
            assert torch.equal(tensor, stored[f"{name}.weight.{leaf}"]), leaf


def test_the_settings_are_the_same(trained_on: dict[str, Linear4bit], quantised: Callable[..., Path]) -> None:
    config = quantization_config(quantised("nf4"))
    assert config is not None
    for layer in trained_on.values():
        state = layer.weight.quant_state
        assert state.quant_type == config["bnb_4bit_quant_type"] == "nf4"
        assert state.nested is config["bnb_4bit_use_double_quant"] is True
        assert str(layer.compute_dtype) == f"torch.{config['bnb_4bit_compute_dtype']}"
        assert str(layer.quant_storage) == f"torch.{config['bnb_4bit_quant_storage']}"
