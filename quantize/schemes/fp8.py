"""W8A8 in float8_e4m3fn, for GPUs with float8 tensor cores (Ada, Hopper and newer)."""

import torch

from qwen_vqa.quantize.schemes.w8a8 import W8A8

DTYPE = torch.float8_e4m3fn


class FP8(W8A8):
    """4 bits of exponent, 3 of mantissa, no infinity."""

    name = "fp8"
    number_type = "float"
    largest = torch.finfo(DTYPE).max

    def rounded(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled.clamp(-self.largest, self.largest).to(DTYPE)
