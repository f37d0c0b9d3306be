"""A few rows times a matrix that is held in 16 bits, where a CPU computes in float32.

Such a product is as long as reading the matrix, and 16 bits are half as long to read. PyTorch has no product of two
types; its compiler makes one that reads the matrix once and widens it in registers, which is exact.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import _inductor as inductor
from torch.fx.experimental.proxy_tensor import make_fx

from qwen_vqa.plugin.cpu.output_layout import FEW

TYPES_OF_16_BITS = (torch.bfloat16, torch.float16)
CHUNK = 8192  # rows that are compared at once, so that comparing takes little memory
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def multiply(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Rows [n, D] in float32, n up to FEW, times a matrix [V, D] of 16 bits: [n, V] in float32.

    The first product of a number of rows with a shape waits for the compiler, see `compile_products`.
    """
    return _product(len(x), *matrix.shape, matrix.dtype)(x.contiguous(), matrix)


def compile_products(matrix: torch.Tensor) -> None:
    """Compile all products with a matrix of this shape and type; later starts find them in PyTorch's cache."""
    for rows in range(1, FEW + 1):
        _product(rows, *matrix.shape, matrix.dtype)


def compiled_products() -> int:
    """How many this process has."""
    return _product.cache_info().currsize


def exact_in_16_bits(whole: torch.Tensor, stored: torch.dtype | None) -> torch.Tensor | None:
    """A float32 matrix in the 16 bits that it was stored in; None where it was not, or is not exact in them."""
    if stored not in TYPES_OF_16_BITS or whole.dtype != torch.float32:
        return None
    weight_16 = whole.to(stored)
    parts = zip(weight_16.split(CHUNK), whole.split(CHUNK), strict=True)
    return weight_16 if all(torch.equal(narrow.float(), part) for narrow, part in parts) else None


@cache
@torch.inference_mode()  # as the engine's steps are
def _product(rows: int, outputs: int, inputs: int, stored: torch.dtype) -> Product:
    """Compiled for these sizes alone, and without torch.compile's guards, which take longer than a small product."""
    # Their numbers are not looked at.
    examples: list[Any] = [torch.empty(rows, inputs), torch.empty(outputs, inputs, dtype=stored)]
    compiled = inductor.compile(make_fx(_widened, tracing_mode="fake")(*examples), examples)
    return lambda x, matrix: compiled(x, matrix)[0]


def _widened(x: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor]:
    wide = matrix.to(x.dtype)
    return (torch.stack([(wide * row).sum(-1) for row in x.unbind()]),)
