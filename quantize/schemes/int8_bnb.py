"""LLM.int8() (arXiv:2208.07339), as bitsandbytes stores it: int8 weights with a scale per output channel."""

from collections.abc import Iterable
from typing import Any

import torch

from qwen_vqa.quantize.schemes.scheme import Scheme, Tensors
from qwen_vqa.train.model.bitsandbytes_weights import INT8 as SETTINGS

LARGEST = 127
TINY = 1e-10


class Int8BitsAndBytes(Scheme):
    """Activations are rounded per token, but for features that reach the threshold in any of the tokens."""

    name = "int8-bnb"
    bits = 8.0

    def quantise(self, weight: torch.Tensor) -> Tensors:
        """`weight` int8 [out, in], `SCB` float32 [out], and the layout's number, 0 for rows."""
        from bitsandbytes.functional import int8_vectorwise_quant

        rounded, scales, _ = int8_vectorwise_quant(weight.half())
        return {"weight": rounded, "SCB": scales.float(), "weight_format": torch.tensor(0, dtype=torch.uint8)}

    def dequantise(self, tensors: Tensors) -> torch.Tensor:
        return tensors["weight"].float() * tensors["SCB"].float().unsqueeze(1) / LARGEST

    def tensor_names(self) -> tuple[str, ...]:
        return ("weight", "SCB", "weight_format")

    def config(self, skipped: Iterable[str]) -> dict[str, Any]:
        return {"quant_method": "bitsandbytes", **SETTINGS, "llm_int8_skip_modules": list(skipped)}

    def round_activations(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in]; which features are outliers depends on all tokens in the call, as it does in bitsandbytes."""
        tokens = inputs.reshape(-1, inputs.shape[-1]).bfloat16().float()  # as which vllm-bnb-plugin takes them
        outliers = tokens.abs() >= SETTINGS["llm_int8_threshold"]
        scale = tokens.masked_fill(outliers, 0).abs().amax(dim=-1, keepdim=True).clamp(min=TINY) / LARGEST
        rounded = (tokens / scale).round() * scale
        return torch.where(outliers.any(dim=0), tokens, rounded).reshape(inputs.shape).to(inputs.dtype)
