"""Input embeddings and output layer on a CPU, without the copies that vLLM 0.32 keeps.

vLLM packs both for oneDNN's products and keeps what it packed: numbers that input and output share are then held three
times (vllm/model_executor/layers/vocab_parallel_embedding.py). A table in which rows are only looked up needs no
packing, and of an output layer the packed form is enough.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from vllm.config import VllmConfig
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from qwen_vqa.plugin.output_layer import PACKED, SETTING, SHARED

ROWS = 8192  # compared at once, so that comparing takes little memory


def hold_embeddings_once(language_model: nn.Module, vllm_config: VllmConfig) -> None:
    """Give the language model's embeddings, as far as they are not quantised, methods that hold them once.

    Call it before the weights are loaded, on a CPU.
    """
    setting = vllm_config.additional_config.get(SETTING, PACKED)  # type: ignore[union-attr] # ours is a dict
    outputs = list(_unquantised(language_model, ParallelLMHead))
    tied = vllm_config.model_config.hf_config.get_text_config().tie_word_embeddings
    shared = setting == SHARED and tied
    for layer in outputs:
        layer.quant_method = SharedOutputLayer() if shared else PackedOutputLayer()
    if not outputs:  # some models multiply with the input embeddings themselves
        return
    named = vllm_config.model_config.hf_config.dtype
    stored = getattr(torch, named) if isinstance(named, str) else named
    for layer in _unquantised(language_model, VocabParallelEmbedding):
        if not isinstance(layer, ParallelLMHead):
            layer.quant_method = InputEmbedding(None if shared else stored)


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
        if self.stored in (torch.bfloat16, torch.float16) and table.dtype == torch.float32:
            halves = table.to(self.stored)
            parts = zip(halves.split(ROWS), table.split(ROWS), strict=True)
            if all(torch.equal(half.float(), whole) for half, whole in parts):
                layer.weight = nn.Parameter(halves, requires_grad=False)

    def embedding(self, layer: Any, input_: torch.Tensor) -> torch.Tensor:
        return functional.embedding(input_, layer.weight).to(self.served)


class PackedOutputLayer(UnquantizedEmbeddingMethod):
    """oneDNN's packed weight, and no other."""

    def process_weights_after_loading(self, layer: Any) -> None:
        dispatch_cpu_unquantized_gemm(layer, remove_weight=True)


class SharedOutputLayer(UnquantizedEmbeddingMethod):
    """Multiplies with a weight that is the input embeddings' own, as it lies."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """The weight stays as it is."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return functional.linear(x, layer.weight, bias)
