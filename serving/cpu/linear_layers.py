"""How the language model's linear layers are held on a CPU that serves float32, chosen unless told."""

import math
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from safetensors import safe_open

from qwen_vqa.plugin.checkpoint_memory import GIB, checkpoint_dtype
from qwen_vqa.plugin.cpu.linear_layout import LEAST_MATRIX_BYTES, LINEAR_LAYERS, MIXED, PACKED, SETTING
from qwen_vqa.plugin.cpu.output_layout import FEW
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.checked_checkpoint import CheckedCheckpoint

FLAG = "--linear-layers"
TYPES_OF_16_BITS = {"bfloat16": "BF16", "float16": "F16"}
PREFIX = "language_model.model.layers."
# What vLLM makes one matrix of.
STACKS = ((re.compile(r"\.[qkv]_proj\."), ".qkv_proj."), (re.compile(r"\.(gate|up)_proj\."), ".gate_up_proj."))


def add_linear_layers_flag(parser: ArgumentParser) -> None:
    """The flag that vLLM does not have."""
    parser.add_argument(
        FLAG,
        choices=LINEAR_LAYERS,
        help=f"on a CPU that serves a 16-bit checkpoint in float32: {PACKED} in float32, or {MIXED}: {PACKED}, and up "
        f"to {FEW} answers at once are decoded from the 16 bits, which are held beside it and half as long to read "
        f"(default: {MIXED} where that takes no more than half of the memory that the weights leave)",
    )


def choose_linear_layers(args: Namespace, checkpoint: CheckedCheckpoint, free: int) -> tuple[str | None, int]:
    """Set `args.linear_layers` and what tells the engine, once the float type is chosen.

    Args:
        free: bytes that weights and processes leave.

    Returns:
        What is to be said, or None, and the bytes of memory that the choice takes.

    Raises:
        UserError: the user asked for what this server cannot do.
    """
    asked = args.linear_layers
    obstacle = _obstacle(args, checkpoint)
    if asked == MIXED and obstacle:
        raise UserError(f"{FLAG} {MIXED}: {obstacle}. Leave it out.")
    taken = 0 if obstacle or asked == PACKED else linear_layer_bytes(checkpoint.folder)
    note = None
    if obstacle or asked == PACKED:
        args.linear_layers = PACKED
    elif asked is None and taken > free // 2:
        args.linear_layers = PACKED
        note = (
            f"linear layers: {PACKED}; {FLAG} {MIXED} would decode up to {FEW} answers at once faster, from 16 "
            f"bits, and take {taken / GIB:.1f} of the {max(0, free) / GIB:.1f} GiB that the weights leave"
        )
        taken = 0
    else:
        args.linear_layers = MIXED
        note = (
            f"linear layers: up to {FEW} answers at once are decoded from the checkpoint's 16 bits, which are half as "
            f"long to read and take {taken / GIB:.2f} GiB beside float32 ({FLAG} {PACKED}: not)"
        )
    args.additional_config = {SETTING: args.linear_layers, **(args.additional_config or {})}
    return note, taken


def _obstacle(args: Namespace, checkpoint: CheckedCheckpoint) -> str | None:
    """Why there is nothing to mix, as the end of a sentence."""
    stored = checkpoint_dtype(checkpoint.folder)
    served = args.dtype
    if checkpoint.scheme is not None or args.quantization is not None:
        return "the checkpoint's linear layers are quantised"
    if served not in ("float32", "float") or stored not in TYPES_OF_16_BITS:
        return f"it is for 16-bit checkpoints served in float32, and this one of {stored} is served in {served}"
    if args.enforce_eager:
        return "its product is made by the compiler, which --enforce-eager turns off"
    if args.enable_lora and not has_compiler():  # beside adapters vLLM compiles nothing, and needs none
        return "its product is made by a C++ compiler, and there is none (apt install g++)"
    if other := _stored_otherwise(checkpoint.folder, TYPES_OF_16_BITS[stored]):
        return f"config.json says {stored}, and {other[0]} is {other[1]}"
    if not linear_layer_bytes(checkpoint.folder):
        return f"none of its matrices has {LEAST_MATRIX_BYTES / 2**20:g} MiB, and smaller ones gain nothing"
    return None


def has_compiler() -> bool:
    """Whether PyTorch finds a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def linear_layer_bytes(folder: Path) -> int:
    """Of the language model's linear layers in 16 bits, those that are large enough to be held so."""
    sizes: dict[str, int] = {}
    for name, _, shape in _matrices(folder):
        for part, stack in STACKS:
            name = part.sub(stack, name)
        sizes[name] = sizes.get(name, 0) + 2 * math.prod(shape)
    return sum(size for size in sizes.values() if size >= LEAST_MATRIX_BYTES)


def _stored_otherwise(folder: Path, expected: str) -> tuple[str, str] | None:
    for name, dtype, _ in _matrices(folder):
        if dtype != expected:
            return name, dtype
    return None


def _matrices(folder: Path) -> list[tuple[str, str, list[int]]]:
    """Name, type and shape of each."""
    found = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                part = tensors.get_slice(name)
                if name.startswith(PREFIX) and len(part.get_shape()) == 2:
                    found.append((name, part.get_dtype(), part.get_shape()))
    return found
