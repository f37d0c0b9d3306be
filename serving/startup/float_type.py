"""The float type that is served: the checkpoint's own, unless told otherwise or the machine only imitates it.

Left to itself, vLLM's `--dtype auto` casts a float32 checkpoint down to 16 bits. So it is never left to itself.
"""

from argparse import Namespace
from collections.abc import Callable, Collection, Mapping

from qwen_vqa.plugin.checkpoint_memory import checkpoint_dtype
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.float_instructions import lacking, multiplies
from qwen_vqa.serving.checked_checkpoint import CheckedCheckpoint

ALIASES = {"float": "float32", "half": "float16"}


def choose_float_type(
    args: Namespace,
    checkpoint: CheckedCheckpoint,
    processor: Mapping[str, object],
    kv_cache: Callable[[str], int],
) -> str:
    """Set `args.dtype` on a CPU, and return what is to be said.

    It is the checkpoint's type, or float32 where that is faster and there is the memory for it: numbers of 16 bits are
    exact in 32, and answers are the checkpoint's. What the user set stands, and so does a scheme whose kernels take 16
    bits alone.

    Args:
        processor: as `torch.cpu.get_capabilities()` has it.
        kv_cache: the bytes of KV cache with a float type; raises UserError where the weights leave no room for it.
    """
    stored = checkpoint_dtype(checkpoint.folder)
    if args.dtype != "auto":
        args.dtype = ALIASES.get(args.dtype, args.dtype)
        return f"float type: {args.dtype} (--dtype)"
    args.dtype = stored
    only_16_bits = args.quantization is not None or (checkpoint.scheme is not None and checkpoint.scheme.only_16_bits)
    if only_16_bits or multiplies(stored, processor):
        return f"float type: {stored}, the checkpoint's (--dtype)"
    try:
        kv_cache("float32")
    except UserError:
        return f"float type: {stored}, slowly: {lacking(stored)}, and there is no memory for float32"
    args.dtype = "float32"
    return f"float type: float32: {lacking(stored)}; --dtype {stored} takes half the memory and longer"


def choose_gpu_float_type(args: Namespace, checkpoint: CheckedCheckpoint, supported: Collection[str]) -> str:
    """Set `args.dtype` on a GPU, and return what is to be said.

    Args:
        supported: names of the float types that vLLM computes in on this card.
    """
    stored = checkpoint_dtype(checkpoint.folder)
    if args.dtype != "auto":
        args.dtype = ALIASES.get(args.dtype, args.dtype)
        return f"float type: {args.dtype} (--dtype)"
    if stored in supported:
        args.dtype = stored
        return f"float type: {stored}, the checkpoint's (--dtype)"
    args.dtype = "float16"
    return (
        f"float type: float16: this GPU has no {stored} arithmetic. Numbers above 65,504 overflow in float16, and "
        "answers can turn into nonsense: check them with `qwen-vqa verify`. --dtype float32 is exact, and takes twice "
        "the memory"
    )
