"""W8A8 in compressed-tensors: int8 weights with a scale per output channel, activations rounded per token.

The kernels multiply int8 by int8: VNNI or AMX on CPUs, int8 tensor cores on GPUs.
"""

from collections.abc import Iterable
from typing import Any

import torch

from qwen_vqa.quantize.scheme import Scheme, Tensors, compressed_tensors_config

LARGEST = 127
TINY = 1e-10


class Int8(Scheme):
    """Symmetric rounding to nearest on both sides."""

    name = "int8"

    def quantise(self, weight: torch.Tensor) -> Tensors:
        """`weight` int8 [out, in] and `weight_scale` float32 [out, 1]."""
        weight = weight.float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=TINY) / LARGEST
        rounded = (weight / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8)
        return {"weight": rounded, "weight_scale": scale}

    def dequantise(self, tensors: Tensors) -> torch.Tensor:
        return tensors["weight"].float() * tensors["weight_scale"].float()

    def tensor_names(self) -> tuple[str, ...]:
        return ("weight", "weight_scale")

    def config(self, skipped: Iterable[str]) -> dict[str, Any]:
        return compressed_tensors_config(
            {"num_bits": 8, "type": "int", "strategy": "channel"},
            {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True},
            "int-quantized",
            skipped,
        )

    def round_activations(self, inputs: torch.Tensor) -> torch.Tensor:
        scale = inputs.float().abs().amax(dim=-1, keepdim=True).clamp(min=TINY) / LARGEST
        return ((inputs.float() / scale).round() * scale).to(inputs.dtype)
