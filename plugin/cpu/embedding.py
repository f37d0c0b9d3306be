"""Input embeddings and output layer on a CPU, without the copies that vLLM 0.32 keeps.

vLLM packs both for oneDNN's products and keeps what it packed: numbers that input and output share are then held three
times (vllm/model_executor/layers/vocab_parallel_embedding.py). A table in which rows are only looked up needs no
packing, and of an output layer the packed form is enough.

With a few answers at once, a product with the output layer is as long as its reading: where float32 is served, tied
numbers are then read where they take half as much, in the input's 16-bit table.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from qwen_vqa.plugin.cpu.output_layout import FEW, LEAST_TABLE_BYTES, MIXED, SETTING, SHARED
from qwen_vqa.plugin.cpu.small_batch_matmul import compile_products, exact_in_16_bits, multiply
from qwen_vqa.plugin.vllm_model_api import (
    CompilationMode,
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VllmConfig,
    VocabParallelEmbedding,
    dispatch_cpu_unquantized_gemm,
)


def hold_embeddings_once(language_model: nn.Module, vllm_config: VllmConfig, stored: torch.dtype | None) -> None:
    """Give the language model's embeddings, as far as they are not quantised, methods that hold them once.

    Call it before the weights are loaded, on a CPU.

    Args:
        stored: the checkpoint's float type.
    """
    setting = vllm_config.additional_config.get(SETTING, MIXED)  # type: ignore[union-attr] # ours is a dict
    outputs = list(_unquantised(language_model, ParallelLMHead))
    tied = vllm_config.model_config.hf_config.get_text_config().tie_word_embeddings
    shared = setting == SHARED and tied
    inputs = [
        layer for layer in _unquantised(language_model, VocabParallelEmbedding) if not isinstance(layer, ParallelLMHead)
    ]
    compiles = vllm_config.compilation_config.mode != CompilationMode.NONE
    table = inputs[0] if setting == MIXED and tied and compiles and len(inputs) == 1 else None
    for layer in outputs:
        layer.quant_method = SharedOutputLayer() if shared else PackedOutputLayer(table)
    if not outputs:  # some models multiply with the input embeddings themselves
        return
    for layer in inputs:
        layer.quant_method = InputEmbedding(None if shared else stored)


def compile_output_layer(language_model: nn.Module) -> None:
    """Compile what is multiplied with 16-bit tables, which takes seconds at a first start, before anybody waits for it.

    Call it when all weights are loaded and packed.
    """
    for layer in language_model.modules():
        if isinstance(layer, ParallelLMHead) and isinstance(layer.quant_method, PackedOutputLayer):
            layer.quant_method.compile()


def _unquantised(model: nn.Module, kind: type[VocabParallelEmbedding]) -> Iterator[VocabParallelEmbedding]:
    for module in model.modules():
        if isinstance(module, kind) and type(module.quant_method) is UnquantizedEmbeddingMethod:
            yield module


class InputEmbedding(UnquantizedEmbeddingMethod):
    """Looks rows up. A table served in float32 is held in the 16 bits that it was stored in, if it is exact in them.

    Args:
        stored: the checkpoint's float type; None: the table is held as it is served.
    """

    def __init__(self, stored: torch.dtype | None) -> None:
        self.stored = stored

    def process_weights_after_loading(self, layer: Any) -> None:
        table = layer.weight.data
        self.served = table.dtype
        weight_16 = exact_in_16_bits(table, self.stored)
        if weight_16 is not None:
            layer.weight = nn.Parameter(weight_16, requires_grad=False)

    def embedding(self, layer: Any, input_: torch.Tensor) -> torch.Tensor:
        return functional.embedding(input_, layer.weight).to(self.served)


class PackedOutputLayer(UnquantizedEmbeddingMethod):
    """oneDNN's packed weight, and no other of its own.

    Args:
        inputs: the input embeddings, if they are the same numbers; None: the packed weight alone is used.
    """

    def __init__(self, inputs: VocabParallelEmbedding | None = None) -> None:
        self.inputs = inputs

    def process_weights_after_loading(self, layer: Any) -> None:
        self.served = layer.weight.dtype
        dispatch_cpu_unquantized_gemm(layer, remove_weight=True)

    def compile(self) -> None:
        """For each number of answers that meets the 16-bit table; nothing where none does."""
        table = self._table()
        if table is not None:
            compile_products(table)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        table = self._table() if len(x) <= FEW and bias is None else None
        return super().apply(layer, x, bias) if table is None else multiply(x, table)

    def _table(self) -> torch.Tensor | None:
        """Of 16 bits, where that is smaller than what is packed, and large enough to be worth it."""
        if self.inputs is None:
            return None
        table: Any = self.inputs.weight  # a tensor
        if self.served != torch.float32 or table.dtype == self.served:
            return None
        return table if table.nbytes >= LEAST_TABLE_BYTES else None


class SharedOutputLayer(UnquantizedEmbeddingMethod):
    """Multiplies with a weight that is the input embeddings' own, as it lies."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """The weight stays as it is."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return functional.linear(x, layer.weight, bias)
