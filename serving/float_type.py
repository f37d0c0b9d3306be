"""The float type on a CPU: the checkpoint's, unless this processor only imitates it."""

from argparse import Namespace
from collections.abc import Callable, Mapping

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.checks import CheckedCheckpoint, checkpoint_dtype

# Of x86: what multiplies numbers of a type as they are. Without it each product converts them first, and prefill takes
# several times as long as in float32 (benchmarks/README.md has the figures).
INSTRUCTIONS = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16", "amx_fp16")}


def choose_float_type(
    args: Namespace,
    checkpoint: CheckedCheckpoint,
    processor: Mapping[str, object],
    kv_cache: Callable[[str], int],
) -> str | None:
    """Set `args.dtype` to float32 where that is faster and there is the memory for it; returns what is to be said.

    Numbers of 16 bits are exact in 32: answers are the checkpoint's. What the user set stands, and so does a scheme
    whose kernels take 16 bits alone.

    Args:
        processor: as `torch.cpu.get_capabilities()` has it.
        kv_cache: the bytes of KV cache with a float type; raises UserError where the weights leave no room for it.
    """
    stored = checkpoint_dtype(checkpoint.folder)
    needed = INSTRUCTIONS.get(stored, ())
    only_16_bits = args.quantization is not None or (checkpoint.scheme is not None and checkpoint.scheme.only_16_bits)
    if args.dtype != "auto" or not needed or only_16_bits or processor.get("architecture") != "x86_64":
        return None
    if any(processor.get(name) for name in needed):
        return None
    lacking = f"this processor has no {stored} arithmetic ({' or '.join(needed)})"
    try:
        kv_cache("float32")
    except UserError:
        return f"float type: {stored}, slowly: {lacking}, and there is no memory for float32"
    args.dtype = "float32"
    return f"float type: float32: {lacking}; --dtype {stored} takes half the memory and longer"
