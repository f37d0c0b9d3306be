"""Linear layers on a CPU that computes in float32, held in the checkpoint's 16 bits beside vLLM's packed float32."""

import itertools
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.library import Library

from qwen_vqa.plugin.cpu.linear_layout import LEAST_MATRIX_BYTES, MIXED, PACKED, SETTING
from qwen_vqa.plugin.cpu.output_layout import FEW
from qwen_vqa.plugin.cpu.small_batch_matmul import compile_products, exact_in_16_bits, multiply
from qwen_vqa.plugin.vllm_model_api import (
    LinearBase,
    UnquantizedLinearMethod,
    VllmConfig,
    direct_register_custom_op,
    init_logger,
)

logger = init_logger(__name__)
# The operator's layers, by number.
_layers: "WeakValueDictionary[int, nn.Module]" = WeakValueDictionary()
_numbers = itertools.count()


def hold_linear_layers(language_model: nn.Module, vllm_config: VllmConfig, stored: torch.dtype | None) -> None:
    """Give the language model's linear layers, as far as they are not quantised, the method that was asked for.

    Call it before the weights are loaded, on a CPU.

    Args:
        stored: the checkpoint's float type.
    """
    setting = vllm_config.additional_config.get(SETTING, PACKED)  # type: ignore[union-attr] # ours is a dict
    if setting == MIXED:
        for layer in language_model.modules():
            if isinstance(layer, LinearBase) and type(layer.quant_method) is UnquantizedLinearMethod:
                layer.quant_method = MixedLinear(stored)


def compile_linear_layers(language_model: nn.Module) -> None:
    """Compile the products of few rows, which takes time at a first start, before anybody waits for it.

    Call it when all weights are loaded and packed.
    """
    for layer in mixed_layers(language_model):
        compile_products(layer.weight_16)


def mixed_layers(language_model: nn.Module) -> Iterator[Any]:
    """The layers that are held twice."""
    for layer in language_model.modules():
        # LoRA's layers have the attributes of those that they wrap.
        if (
            isinstance(layer, LinearBase)
            and isinstance(layer.quant_method, MixedLinear)
            and hasattr(layer, "weight_16")
        ):
            yield layer


class MixedLinear(UnquantizedLinearMethod):
    """vLLM's packed float32, and for up to FEW rows the 16 bits of the checkpoint, which are the same numbers."""

    def __init__(self, stored: torch.dtype | None) -> None:
        super().__init__()
        self.stored = stored

    def process_weights_after_loading(self, layer: Any) -> None:
        whole = layer.weight.data
        weight_16 = exact_in_16_bits(whole, self.stored) if 2 * whole.numel() >= LEAST_MATRIX_BYTES else None
        super().process_weights_after_loading(layer)
        if weight_16 is None:
            if 2 * whole.numel() >= LEAST_MATRIX_BYTES:
                logger.warning("a linear layer of %s is not exact in %s: packed alone", list(whole.shape), self.stored)
            return
        layer.weight_16 = weight_16
        number = next(_numbers)
        _layers[number] = layer
        # A tensor, for a number would be compiled into the graph, and each layer's would be another graph.
        layer.register_buffer("number", torch.tensor(number), persistent=False)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if not hasattr(layer, "weight_16"):
            return super().apply(layer, x, bias)
        return torch.ops.qwen_vqa.mixed_linear(x, bias, layer.number, layer.weight_16.shape[0])


def _mixed_linear(x: torch.Tensor, bias: torch.Tensor | None, number: torch.Tensor, outputs: int) -> torch.Tensor:
    """Rows [..., D] times a layer's matrix [V, D], by its number: [..., V]. It chooses by the number of rows, which
    the compiled graph around it does not know."""
    layer: Any = _layers[int(number)]
    if x.dim() != 2 or not 0 < len(x) <= FEW:
        return layer.cpu_linear(x, layer.weight, bias)
    product = multiply(x, layer.weight_16)
    return product if bias is None else product.add_(bias)


def _mixed_linear_shape(x: torch.Tensor, bias: torch.Tensor | None, number: torch.Tensor, outputs: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


_library = Library("qwen_vqa", "FRAGMENT")
direct_register_custom_op("mixed_linear", _mixed_linear, fake_impl=_mixed_linear_shape, target_lib=_library)
