"""Adapters on int8 layers on a CPU, which vLLM 0.32 cannot wrap by itself.

Its oneDNN kernel moves an int8 weight into a handle of its own and leaves `weight` None behind; its LoRA layers then
ask `weight` for its device (vllm/lora/layers/utils.py) and fail. An empty weight on the same device answers them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase


class LoraDevices(nn.Module):
    """Add this to a model as its last module: vLLM calls each module's `quant_method` in order once all is loaded."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.quant_method = _EmptyWeights(language_model)


class _EmptyWeights(QuantizeMethodBase):
    """Gives Linear layers whose weight the kernel took an empty one."""

    def __init__(self, language_model: nn.Module) -> None:
        self.language_model = language_model

    def create_weights(self, layer: nn.Module, *weight_args: Any, **extra_weight_attrs: Any) -> None:
        """There are none."""

    def apply(self, layer: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise NotImplementedError("this module computes nothing.")

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        for linear in self._emptied():
            linear.weight = nn.Parameter(torch.empty(0, device="cpu"), requires_grad=False)

    def _emptied(self) -> Iterator[LinearBase]:
        for module in self.language_model.modules():
            if isinstance(module, LinearBase) and getattr(module, "weight", module) is None:
                yield module
