"""W8A8 in float8_e4m3fn (compressed-tensors): weights with a scale per output channel, activations per token.

For GPUs with float8 tensor cores (Ada, Hopper and newer).
"""

from collections.abc import Iterable
from typing import Any

import torch

from qwen_vqa.quantize.scheme import Scheme, Tensors, compressed_tensors_config

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
TINY = 1e-10


class FP8(Scheme):
    """Symmetric rounding to nearest on both sides."""

    name = "fp8"

    def quantise(self, weight: torch.Tensor) -> Tensors:
        """`weight` float8 [out, in] and `weight_scale` float32 [out, 1]."""
        weight = weight.float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=TINY) / LARGEST
        return {"weight": (weight / scale).clamp(-LARGEST, LARGEST).to(DTYPE), "weight_scale": scale}

    def dequantise(self, tensors: Tensors) -> torch.Tensor:
        return tensors["weight"].float() * tensors["weight_scale"].float()

    def tensor_names(self) -> tuple[str, ...]:
        return ("weight", "weight_scale")

    def config(self, skipped: Iterable[str]) -> dict[str, Any]:
        return compressed_tensors_config(
            {"num_bits": 8, "type": "float", "strategy": "channel"},
            {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True},
            "float-quantized",
            skipped,
        )

    def round_activations(self, inputs: torch.Tensor) -> torch.Tensor:
        scale = inputs.float().abs().amax(dim=-1, keepdim=True).clamp(min=TINY) / LARGEST
        return ((inputs.float() / scale).to(DTYPE).float() * scale).to(inputs.dtype)
