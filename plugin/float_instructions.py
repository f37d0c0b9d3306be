"""Which float types a CPU multiplies as they are; others it converts first, which takes longer than float32.

benchmarks/README.md has the figures of serving.
"""

from collections.abc import Mapping

# Of x86, by the names of `torch.cpu.get_capabilities()`.
INSTRUCTIONS = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16", "amx_fp16")}


def multiplies(dtype: str, processor: Mapping[str, object]) -> bool:
    """Whether a processor has instructions for products of this float type; true where it is not known, beyond x86.

    Args:
        processor: as `torch.cpu.get_capabilities()` has it.
    """
    names = INSTRUCTIONS.get(dtype, ())
    return not names or processor.get("architecture") != "x86_64" or any(processor.get(name) for name in names)


def lacking(dtype: str) -> str:
    """Why a processor that does not multiply this float type does not, for messages."""
    return f"this processor has no {dtype} arithmetic ({' or '.join(INSTRUCTIONS[dtype])})"
