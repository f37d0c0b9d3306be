"""W8A8 in int8, whose kernels multiply int8 by int8: VNNI or AMX on CPUs, int8 tensor cores on GPUs."""

import torch

from qwen_vqa.quantize.schemes.w8a8 import W8A8


class Int8(W8A8):
    """-127 to 127."""

    name = "int8"
    number_type = "int"
    largest = 127

    def rounded(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled.round().clamp(-self.largest, self.largest).to(torch.int8)
