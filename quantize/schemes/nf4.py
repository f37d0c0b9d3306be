"""4-bit NormalFloat with double quantisation (QLoRA, arXiv:2305.14314), as bitsandbytes stores it."""

from collections.abc import Iterable
from typing import Any

import torch

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.quantize.schemes.scheme import Scheme, Tensors
from qwen_vqa.train.model.bitsandbytes_weights import NF4 as SETTINGS

BLOCK_SIZE = 64  # bitsandbytes' default
BLOCKS_TOGETHER = 256  # whose scales, of 8 bits, share one in float32


class NF4(Scheme):
    """Blocks of 64 weights share a scale, and 256 scales share another."""

    name = "nf4"
    bits = 4 + (8 + 32 / BLOCKS_TOGETHER) / BLOCK_SIZE

    def check_shapes(self, shapes: dict[str, tuple[int, int]]) -> None:
        """Blocks may not run from one row into the next: the served layer's parts are cut at rows."""
        for name, (_, width) in shapes.items():
            if width % BLOCK_SIZE:
                raise UserError(
                    f"nf4 rounds blocks of {BLOCK_SIZE} weights, which do not divide {name}'s {width} inputs; "
                    "take --scheme int8 or int8-bnb."
                )

    def quantise(self, weight: torch.Tensor) -> Tensors:
        """`weight` uint8 [out * in / 2, 1] and bitsandbytes' quantisation state."""
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(
            weight.contiguous(), blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
        )
        return {"weight": packed, **{f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}}

    def dequantise(self, tensors: Tensors) -> torch.Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState.from_dict(
            {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name != "weight"},
            device=tensors["weight"].device,
        )
        return dequantize_4bit(tensors["weight"], state).float()

    def tensor_names(self) -> tuple[str, ...]:
        return ("weight", "weight.")

    def config(self, skipped: Iterable[str]) -> dict[str, Any]:
        return {"quant_method": "bitsandbytes", **SETTINGS, "llm_int8_skip_modules": list(skipped)}
