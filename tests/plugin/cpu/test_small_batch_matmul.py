"""A few rows times a matrix of 16 bits: the numbers are float32's own."""

import pytest
import torch

from qwen_vqa.plugin.cpu.output_layout import FEW
from qwen_vqa.plugin.cpu.small_batch_matmul import compile_products, compiled_products, exact_in_16_bits, multiply


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, FEW])
def test_a_product_of_two_types_is_the_wide_ones(rows: int, stored: torch.dtype):
    matrix = torch.randn(300, 40).to(stored)
    x = torch.randn(rows, 40)
    torch.testing.assert_close(multiply(x, matrix), x @ matrix.float().T)


def test_rows_that_lie_apart_are_multiplied_as_they_are():
    matrix = torch.randn(300, 40).bfloat16()
    x = torch.randn(40, 2 * FEW).T[::2]
    assert not x.is_contiguous()
    torch.testing.assert_close(multiply(x, matrix), x @ matrix.float().T)


def test_nothing_waits_for_the_compiler_once_it_has_compiled():
    matrix = torch.randn(310, 40).bfloat16()
    before = compiled_products()
    compile_products(matrix)
    assert compiled_products() == before + FEW
    for rows in range(1, FEW + 1):
        multiply(torch.randn(rows, 40), matrix)
    compile_products(torch.randn(310, 40).bfloat16())  # of the same shape
    assert compiled_products() == before + FEW


def test_halves_are_the_same_numbers_or_none():
    whole = torch.randn(20_000, 4).bfloat16().float()
    halves = exact_in_16_bits(whole, torch.bfloat16)
    assert halves is not None and halves.dtype == torch.bfloat16 and torch.equal(halves.float(), whole)
    whole[15_000, 2] = 1 + 2**-12  # float32 has it, bfloat16 does not
    assert exact_in_16_bits(whole, torch.bfloat16) is None
    assert exact_in_16_bits(whole, torch.float32) is None
    assert exact_in_16_bits(whole.double(), torch.bfloat16) is None
    assert exact_in_16_bits(whole, None) is None
