"""8-bit weights and activations for compressed-tensors: a scale per output channel and per token."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch

from qwen_vqa.quantize.schemes.scheme import Scheme, Tensors, compressed_tensors_config

TINY = 1e-10


class W8A8(Scheme):
    """Symmetric rounding to nearest on both sides.

    `number_type` is what compressed-tensors calls the numbers ("int", "float"), `largest` the largest of them.
    """

    bits = 8.0
    number_type: ClassVar[str]
    largest: ClassVar[float]

    @abstractmethod
    def rounded(self, scaled: torch.Tensor) -> torch.Tensor:
        """Values within `largest` to the nearest numbers of the scheme, in the dtype in which they are stored."""

    def quantise(self, weight: torch.Tensor) -> Tensors:
        """`weight` in 8 bits [out, in] and `weight_scale` float32 [out, 1]."""
        scale = self._scale(weight)
        return {"weight": self.rounded(weight.float() / scale), "weight_scale": scale}

    def dequantise(self, tensors: Tensors) -> torch.Tensor:
        return tensors["weight"].float() * tensors["weight_scale"].float()

    def tensor_names(self) -> tuple[str, ...]:
        return ("weight", "weight_scale")

    def config(self, skipped: Iterable[str]) -> dict[str, Any]:
        return compressed_tensors_config(
            {"num_bits": 8, "type": self.number_type, "strategy": "channel"},
            {"num_bits": 8, "type": self.number_type, "strategy": "token", "dynamic": True, "symmetric": True},
            f"{self.number_type}-quantized",
            skipped,
        )

    def round_activations(self, inputs: torch.Tensor) -> torch.Tensor:
        scale = self._scale(inputs)
        return (self.rounded(inputs.float() / scale).float() * scale).to(inputs.dtype)

    def _scale(self, values: torch.Tensor) -> torch.Tensor:
        """Of each row, [..., 1]."""
        return values.float().abs().amax(dim=-1, keepdim=True).clamp(min=TINY) / self.largest
