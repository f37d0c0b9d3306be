"""Adapters on int8 layers on a CPU, which vLLM 0.32 cannot wrap by itself.

Its oneDNN kernel moves an int8 weight into a handle of its own and leaves `weight` None behind; its LoRA layers then
ask `weight` for its device (vllm/lora/layers/utils.py) and fail. An empty weight on the same device answers them.
"""

import torch
from torch import nn

from qwen_vqa.plugin.vllm_model_api import LinearBase


def give_empty_weights(language_model: nn.Module) -> None:
    """Give Linear layers whose weight the kernel took an empty one. Call it once all weights are loaded."""
    for module in language_model.modules():
        if isinstance(module, LinearBase) and getattr(module, "weight", module) is None:
            module.weight = nn.Parameter(torch.empty(0, device="cpu"), requires_grad=False)
