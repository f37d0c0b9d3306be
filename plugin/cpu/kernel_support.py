"""What vLLM's kernels for CPUs can do on this processor, asked of the kernels themselves."""

from functools import cache

import torch


@cache
def int8_products_are_right(largest: int = 127) -> bool:
    """Whether vLLM has a product for W8A8 here, and it is the product, up to integers of this size.

    It is oneDNN's. Without instructions for it (`quantization.INT8_INSTRUCTIONS`) each two neighbouring products are
    added in 16 bits, which large ones overflow: there is no error, only other numbers
    (https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html).
    """
    from vllm import _custom_ops as ops

    if not hasattr(torch.ops._C, "create_onednn_scaled_mm_handler"):
        return False
    tokens, depth, width = 2, 64, 32
    weights = torch.full((width, depth), largest, dtype=torch.int8).t()  # column by column, as vLLM has them
    scales = torch.ones(width)  # kept in a variable: the handler only points to them
    handler = ops.create_onednn_scaled_mm(weights, scales, torch.float32, True, False, 1)
    found = torch.empty(tokens, width)
    activations = torch.full((tokens, depth), largest, dtype=torch.int8)
    ops.onednn_scaled_mm(handler, activations, found, torch.ones(tokens, 1), None, None, None)
    return bool((found == depth * largest**2).all())


@cache
def multiplies_4_bit_weights() -> bool:
    """Whether vLLM's build for this processor has the product of W4A16: on x86, those for AVX-512 do."""
    from vllm import _custom_ops  # noqa: F401 - loads the build for this processor

    return hasattr(torch.ops._C, "cpu_gemm_wna16")
