"""W4A16 in compressed-tensors: 4-bit weights whose groups along the input share a scale.

`quantise` rounds to nearest; `calibration.py` finds better roundings with AutoRound and the same storage.
"""

from collections.abc import Iterable
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.quantize.schemes.scheme import GROUP_SIZES, Scheme, Tensors, compressed_tensors_config

BITS, SCALE_BITS = 4, 16
LOWEST, HIGHEST = -8, 7
# Of vLLM's kernels: 32 on CPUs and in Marlin.
TILE = 32
TINY = 1e-10


class Int4(Scheme):
    """Symmetric groups of `group_size` inputs."""

    name = "int4"
    calibrated = True

    def __init__(self, group_size: int = 128) -> None:
        if group_size not in GROUP_SIZES:
            raise UserError(f"--group-size {group_size}: it must be one of {', '.join(map(str, GROUP_SIZES))}.")
        self.group_size = group_size
        self.bits = BITS + SCALE_BITS / group_size

    def check_shapes(self, shapes: dict[str, tuple[int, int]]) -> None:
        """The group size must divide every input width, and the kernels' tiles every width."""
        for name, (out_width, in_width) in shapes.items():
            for what, width in (("outputs", out_width), ("inputs", in_width)):
                if width % TILE:
                    raise UserError(
                        f"--scheme int4 is served in tiles of {TILE}, which do not divide the {width} {what} of "
                        f"{name}; take --scheme int8."
                    )
        bad = {name: width for name, (_, width) in shapes.items() if width % self.group_size}
        if bad:
            name, width = next(iter(bad.items()))
            fitting = [size for size in GROUP_SIZES if not any(width % size for _, width in shapes.values())]
            raise UserError(
                f"--group-size {self.group_size} does not divide the {width} inputs of {name} (and {len(bad) - 1} "
                f"more layers); choose --group-size {' or '.join(map(str, reversed(fitting)))}."
            )

    def quantise(self, weight: torch.Tensor) -> Tensors:
        """`weight_packed` int32 [out, in / 8], `weight_scale` [out, groups] and `weight_shape` [2]."""
        groups = weight.float().unflatten(1, (-1, self.group_size))
        # The value that is largest in size gets -8, the one step that the other side lacks.
        largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True)).squeeze(2)
        scale = (largest / LOWEST).to(scale_dtype(weight.dtype))
        return self.store(weight, torch.where(scale.abs() < TINY, torch.full_like(scale, TINY), scale))

    def store(self, weight: torch.Tensor, scale: torch.Tensor) -> Tensors:
        """A weight [out, in], on the grid of `scale` [out, groups] or to be rounded to it, as it is stored."""
        groups = weight.float().unflatten(1, (-1, self.group_size))
        rounded = (groups / scale.float().unsqueeze(2)).round().clamp(LOWEST, HIGHEST).to(torch.int8).flatten(1)
        return {
            "weight_packed": pack_to_int32(rounded, BITS),
            "weight_scale": scale,
            "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
        }

    def dequantise(self, tensors: Tensors) -> torch.Tensor:
        shape = torch.Size(tensors["weight_shape"].tolist())
        rounded = unpack_from_int32(tensors["weight_packed"], BITS, shape).float()
        scale = tensors["weight_scale"].float().unsqueeze(2)
        return (rounded.unflatten(1, (-1, self.group_size)) * scale).flatten(1)

    def tensor_names(self) -> tuple[str, ...]:
        return ("weight_packed", "weight_scale", "weight_shape")

    def config(self, skipped: Iterable[str]) -> dict[str, Any]:
        return compressed_tensors_config(
            {"num_bits": BITS, "type": "int", "strategy": "group", "group_size": self.group_size},
            None,
            "pack-quantized",
            skipped,
        )


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of scales beside weights of this dtype: the kernels take them in 16 bits."""
    return dtype if dtype == torch.float16 else torch.bfloat16
